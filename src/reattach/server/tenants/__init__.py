"""Everything of one tenant in both stores: exported, and deleted."""
