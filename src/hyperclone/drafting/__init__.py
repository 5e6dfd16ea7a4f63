"""A proposal of a family file for an architecture that is not listed."""
