"""Backups of a data directory, made while a server uses it, and their restoration."""
