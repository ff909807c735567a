"""The log in a SQLite file, with nothing beside it."""
