"""Entry point of `python -m jax_tkg.simulator`."""

import sys

from jax_tkg import command_line
from jax_tkg.simulator.commands.main import main

if __name__ == "__main__":
    command_line.exit_after(lambda: main(sys.argv[1:]))
