"""The log on Redis or Valkey, shared by many processes."""
