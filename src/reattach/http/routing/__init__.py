"""Requests on their way to an operation: the route of a path, and the arguments of a function."""
