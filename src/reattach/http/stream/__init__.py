"""A run as a response: from a cursor on, live until its end."""
