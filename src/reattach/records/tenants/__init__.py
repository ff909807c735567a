"""Everything of a tenant at once: how much there is, its export, and its deletion."""
