"""Attempts at a run: what a second one needs, when there is one, and how it goes on."""
