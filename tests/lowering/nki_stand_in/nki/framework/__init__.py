"""Kernels as objects, and how each framework calls them."""
