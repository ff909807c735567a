"""The composition root: assembly of a server's parts, and the processes that serve."""
