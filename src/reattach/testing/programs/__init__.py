"""Programs for tests: servers, stores, proxies and a relay that cuts connections."""
