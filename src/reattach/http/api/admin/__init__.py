"""Routes for those who run the server, and for those who manage one tenant of it."""
