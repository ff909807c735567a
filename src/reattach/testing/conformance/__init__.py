"""Suites for a log or an engine of your own."""
