"""The event log on Redis or Valkey, shared by many processes."""
