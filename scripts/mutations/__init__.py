"""Faults that the tests must notice: tables by part of the package, the simulator's, a runner."""
