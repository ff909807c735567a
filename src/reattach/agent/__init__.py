"""The parts of an agent's turn, before an engine answers it."""
