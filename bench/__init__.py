"""Measurements of the whole product. No test depends on them."""
