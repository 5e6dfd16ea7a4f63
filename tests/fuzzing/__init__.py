"""Fuzzing of everything that is read from a stranger's directory: targets.py says what, run.py does it."""
