"""Rows that are kept in memory until something may have changed them."""
