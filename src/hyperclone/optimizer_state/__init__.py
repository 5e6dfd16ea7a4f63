"""The moments of a source's optimizer: read, grown, written and proved."""
