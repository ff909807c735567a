"""Benchmarks of the whole product. No test depends on their figures."""
