"""Downloads SmolLM2-135M-Instruct: the same as `python -m jax_tkg.fetch_model`."""

from __future__ import annotations

from jax_tkg import command_line, fetch_model

if __name__ == "__main__":
    command_line.exit_after(fetch_model.main)
