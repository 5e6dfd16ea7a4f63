"""The results of a study as one page and its figures."""
