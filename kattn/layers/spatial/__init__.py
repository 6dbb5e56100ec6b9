"""Attention over feature maps, and gates of their channels and cells."""
