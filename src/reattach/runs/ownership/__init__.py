"""Ownership of runs, and the recovery of runs whose owner is gone."""
