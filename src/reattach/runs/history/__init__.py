"""Facts about runs that are kept beside their events: when those came, and who was cut off."""
