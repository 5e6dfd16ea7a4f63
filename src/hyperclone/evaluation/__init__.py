"""lm-evaluation-harness on a grown model and its source, side by side, also without access to the Hub."""
