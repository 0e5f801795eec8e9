"""Benchmarks: ratios within one run, a fresh process a variant. `make bench`."""
