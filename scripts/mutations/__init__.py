"""Faults that the tests must notice: a table of the simulator's, one of the package's, a runner."""
