"""Optimizers for a grown model: parameter groups by the scaling law, rotated AdamW, loading grown moments."""
