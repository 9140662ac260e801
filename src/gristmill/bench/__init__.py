"""Benchmarks: providers of an op compared on real problems, correctness first, launches interleaved
one by one."""
