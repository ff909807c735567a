"""Runs in other dialects: their frames, computed once for all readers of a process."""
