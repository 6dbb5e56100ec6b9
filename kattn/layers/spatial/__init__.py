"""Self-attention over feature maps."""
