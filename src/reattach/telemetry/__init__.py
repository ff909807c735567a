"""Traces of runs by OpenTelemetry, imported only if the environment asks for it."""
