"""Entry point of `python -m jax_tkg`."""

from jax_tkg import console

if __name__ == "__main__":
    console.run()
