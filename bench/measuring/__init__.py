"""The instruments: the load client, the machine, rounds, and the file of results."""
