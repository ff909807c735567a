"""Who owns which runs, and what happens to those whose owner is gone."""
