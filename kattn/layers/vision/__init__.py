"""Self-attention over images."""
