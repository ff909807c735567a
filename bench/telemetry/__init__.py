"""Measurements of traces."""
