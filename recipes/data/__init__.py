"""Data sets for the recipes, as NumPy arrays."""
