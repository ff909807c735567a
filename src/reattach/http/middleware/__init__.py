"""Middleware between the connection and the routes: keys, scopes, quotas, body limits, logs."""
