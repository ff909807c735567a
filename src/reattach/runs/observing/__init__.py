"""Observers of runs: metrics, traces and log lines are made from the same calls."""
