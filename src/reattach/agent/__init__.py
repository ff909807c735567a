"""What a turn of an agent is made of, before an engine answers it."""
