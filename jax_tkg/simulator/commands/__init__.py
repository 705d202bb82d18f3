"""The simulator's commands: run, profile or check a kernel of any module."""
