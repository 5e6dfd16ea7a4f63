"""Files: reading checkpoints, Hub ids, output directories that are complete or absent, shards, threads."""
