"""Forms of providers' answers, each with the run that an engine must produce from it.

``conformance`` has them as tests for your own engine.
"""
