"""Programs that tests start: servers, stores, proxies, and a relay that cuts connections."""
