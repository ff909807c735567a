"""The view of a user of each client when something breaks: each cell is an experiment.

The clients are programs and pages in ``programs``, as the documentation writes them. The browser is
that of the tests (``tests/support/browser.py``).
"""
