"""Measurements of a server's start."""
