"""Stream tokens: the issued ones, and the keys that sign them."""
