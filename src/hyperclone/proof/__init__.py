"""The structural and the behavioral proof, and the validation of a family file."""
