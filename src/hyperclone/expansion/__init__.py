"""The arithmetic of growing, and the tensors of a plan made with it."""
