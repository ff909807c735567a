"""What a process does for its runs at regular intervals."""
