"""The part of a run that a reader of its events needs."""
