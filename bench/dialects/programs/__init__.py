"""Programs with sessions of the clients; those of Node are in ``tests/dialects/node/sessions``."""
