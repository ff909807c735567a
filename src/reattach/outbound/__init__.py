"""Requests to URLs that clients name."""
