"""`hyperclone train`: continued pre-training on transformers' Trainer."""
