"""A source's optimizer moments: read, grown, written and proved."""
