"""The figures of a server process, and the port that shows them."""
