"""Drivers that take the steps of readings, over asyncio and in a thread."""
