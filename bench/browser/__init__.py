"""The page of the server in a real browser, which is that of the tests."""
