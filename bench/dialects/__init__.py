"""The dialects beside each other."""
