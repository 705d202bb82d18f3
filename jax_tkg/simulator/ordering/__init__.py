"""The order of memory accesses: hazards, dependencies, races and core barriers."""
