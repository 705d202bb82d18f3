"""The implementation "reference": plain jax.numpy, on every platform."""

from __future__ import annotations

from jax_tkg.lowering.implementation import Implementation
from jax_tkg.reference.transformer import transformer

REFERENCE = Implementation(
    name="reference",
    description="plain jax.numpy",
    platforms=(),
    available=lambda platform: None,
    check=lambda operands, parameters, platform: None,
    run=lambda operands, parameters, platform: transformer(operands, parameters),
)
