"""Entry point of `python -m jax_tkg.profile`."""

from jax_tkg import command_line

if __name__ == "__main__":
    command_line.run("jax_tkg.profile.command", extra="profile")
