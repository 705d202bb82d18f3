"""One call as data: its arrays, its static parameters, and their checks."""
