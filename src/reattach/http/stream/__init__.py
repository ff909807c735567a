"""A run as a response: its events after a cursor, live until its end."""
