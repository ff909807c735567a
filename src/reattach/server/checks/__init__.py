"""The checks that `reattach doctor` and the page of a running server make."""
