"""Reports of the processes that serve runs: their open runs, readers and condition."""
