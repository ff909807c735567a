"""Benchmarks of single requests."""
