"""The stages of jax_tkg.reference that XLA:CPU wants written otherwise, under the same names."""
