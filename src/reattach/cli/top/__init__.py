"""``reattach top``: a live table of the processes and open runs of a server."""
