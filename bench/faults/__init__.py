"""Clients under faults, and the history that shows whether anything was lost."""
