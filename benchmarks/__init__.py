"""Benchmarks: they compare variants within one run, each in a fresh process. `make bench` runs them."""
