"""Views of single runs for people who look into them: their events, and when those came."""
