"""Attention of a sequence to itself or to another."""
