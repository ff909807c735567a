"""The metrics of the server, as Prometheus reads them."""
