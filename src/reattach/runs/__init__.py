"""Runs: how they start, who drives them, how readers follow them, and how each one ends."""
