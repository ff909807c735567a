"""A server speaking the Letta API whose runs write durable, numbered event logs.

A client that reconnects with the last number it has gets exactly what follows it.
"""

__version__ = "0.1.0"
