"""Summaries that replace the older part of a conversation's context."""
