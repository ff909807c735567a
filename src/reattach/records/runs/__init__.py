"""The records of runs: how they begin, who owns them, how they end."""
