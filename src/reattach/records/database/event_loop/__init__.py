"""Sockets that the event loop watches, and threads that it calls, to make transactions."""
