"""Calls to the receivers that clients name, when their runs end."""
