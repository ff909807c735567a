"""The forms in which providers answer, and the run that an engine must make of each.

``conformance`` has them as tests for an engine of your own.
"""
