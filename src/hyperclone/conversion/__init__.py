"""The verbs on directories and models: grow, verify, collapse, grow in memory; receipt, model card, provenance."""
