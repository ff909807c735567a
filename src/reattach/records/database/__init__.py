"""The database of the records: its transactions, schema and drivers."""
