"""Benchmarks: what ours achieves beside others, measured on the machine at hand, with the answers checked."""
