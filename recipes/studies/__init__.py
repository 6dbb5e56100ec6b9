"""Comparisons that are no task of their own: `python -m recipes.studies.<study> --help`."""
