"""Durable Streams: logs of runs for the clients of that protocol, which only reads here."""
