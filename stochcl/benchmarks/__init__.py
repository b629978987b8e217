"""Benchmarks of stochcl beside other methods, with the answers checked."""
