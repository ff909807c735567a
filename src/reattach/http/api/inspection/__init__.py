"""Routes that look into runs."""
