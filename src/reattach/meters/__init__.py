"""Counters and histograms of a server, and their form for Prometheus."""
