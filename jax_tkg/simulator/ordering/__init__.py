"""Which accesses are ordered by what: hazards, dependencies and races."""
