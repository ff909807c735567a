"""Routes for the clients of other ecosystems. Each dialect has a package or module of its own."""
