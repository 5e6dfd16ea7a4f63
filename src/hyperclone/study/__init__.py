"""Studies: arms x seeds with one data order, and their tables."""
