"""Benchmarks: backward forms against each other, on the same inputs, in one run."""
