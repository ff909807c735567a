"""Everything between the connection and a route: keys, rights, quotas, sizes."""
