"""Examination of the path from a client to a server: finds proxies that harm streams."""
