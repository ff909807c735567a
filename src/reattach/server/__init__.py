"""The composition root: the parts put together, and the processes that serve."""
