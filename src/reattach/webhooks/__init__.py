"""Calls to the URLs that clients name, when their runs end."""
