"""The primitive, and the implementations that it lowers to."""
