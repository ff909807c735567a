"""Snapshots: the messages of a run as of one of its events."""
