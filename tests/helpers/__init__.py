"""What several tests share: models, headers, texts, training steps."""
