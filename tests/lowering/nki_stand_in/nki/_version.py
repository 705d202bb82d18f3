"""The stand-in's version."""

__version__ = "0.6.0+stand.in"
