"""What others need to test what they build on Reattach, or a backend for it.

Public, and used by this project's own tests. Nothing outside imports it.
"""
