"""Files: checkpoints, the Hub, output directories that are complete or absent, shards, threads."""
