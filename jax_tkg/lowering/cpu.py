"""The implementation "cpu": the definition, written as XLA:CPU runs it fastest."""

from __future__ import annotations

from jax_tkg.cpu.transformer import transformer
from jax_tkg.lowering.implementation import Implementation

CPU = Implementation(
    name="cpu",
    description="jax.numpy as XLA:CPU runs it fastest",
    platforms=("cpu",),
    available=lambda platform: None,
    check=lambda operands, parameters, platform: None,
    run=lambda operands, parameters, platform: transformer(operands, parameters),
)
