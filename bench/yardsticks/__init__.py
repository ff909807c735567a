"""Servers that Reattach is compared with: a ceiling, a common solution, and published products.

The servers in this package share a small interface: ``POST /ended/RUN?events=N``,
``POST /paced/RUN?events=N&rate=N&phase_ns=N&gate=FILE``, ``GET /stream/RUN?after=CURSOR``, and
``GET /empty``, which has an empty answer.
"""
