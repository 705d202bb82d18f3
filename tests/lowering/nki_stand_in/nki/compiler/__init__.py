"""From a function to a program that runs."""
