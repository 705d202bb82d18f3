"""A llama-architecture model writes text: `python -m jax_tkg.generate`."""
