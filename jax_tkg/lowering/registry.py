"""The implementations of the operation, each from its own file."""

from __future__ import annotations

from jax_tkg.lowering.cpu import CPU
from jax_tkg.lowering.implementation import Implementation
from jax_tkg.lowering.neuron import NEURON
from jax_tkg.lowering.nkilib import NKILIB
from jax_tkg.lowering.reference import REFERENCE
from jax_tkg.lowering.simulate import SIMULATE

IMPLEMENTATIONS: tuple[Implementation, ...] = (REFERENCE, CPU, NEURON, SIMULATE, NKILIB)
"""All of them. Their names and "auto" are the values of the argument `implementation`."""

AUTOMATIC: tuple[Implementation, ...] = (NEURON, CPU, REFERENCE)
"""Those that "auto" chooses from: the first that can run. The last one always can."""


def named(name: str) -> Implementation:
    """The implementation of a name."""
    return next(one for one in IMPLEMENTATIONS if one.name == name)
