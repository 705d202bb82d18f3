"""Entry point of `python -m jax_tkg.generate`."""

from jax_tkg import command_line

if __name__ == "__main__":
    command_line.run("jax_tkg.generate.command", extra="models")
