"""Tests of kattn: one file per source file, oracles in NumPy float64."""
