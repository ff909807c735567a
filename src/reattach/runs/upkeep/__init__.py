"""Regular work of a process for its runs."""
