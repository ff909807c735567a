"""Notes of clocks, which outlive the processes that read them."""
