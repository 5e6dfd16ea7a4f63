"""Optimizers for a grown model: param groups by the scaling rule, rotated AdamW, loading grown moments."""
