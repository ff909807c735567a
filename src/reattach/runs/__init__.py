"""The heart: what a run is, who works on it, who follows it, and how it always ends."""
