"""The only adapter to transformers' internals: loading, parameter names, tiny models, logits, memory."""
