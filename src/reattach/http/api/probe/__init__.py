"""Routes with which ``reattach doctor --through`` examines the path from a client to the server."""
