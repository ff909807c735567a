"""Lists of runs: for clients, and for operators."""
