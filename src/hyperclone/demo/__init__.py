"""`hyperclone demo`: the experiment in small, with a model that ships with the package."""
