"""Kinds of layers: which layers share masks, rotation tables, write slots and cache capacity."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class LayerKinds:
    """The kind of each layer; hashable.

    Attributes:
      of_layers: the kinds of the layers, numbers from 0 of which none is left out.
    """

    of_layers: tuple[int, ...]

    @classmethod
    def of(cls, layer_kinds: tuple[int, ...] | None, num_layers: int) -> LayerKinds:
        """Of the argument `layer_kinds`, in its canonical form; None stands for equal layers."""
        return cls(layer_kinds or (0,) * num_layers)

    @functools.cached_property
    def count(self) -> int:
        """How many kinds there are."""
        return max(self.of_layers) + 1

    @functools.cached_property
    def pattern(self) -> tuple[int, ...]:
        """The shortest beginning of `of_layers` that, repeated, gives all of it.

        The last repetition may be cut off: the pattern of 0 0 1 0 0 1 0 is 0 0 1.
        """
        for size in range(1, len(self.of_layers)):
            if self.of_layers[size:] == self.of_layers[:-size]:
                return self.of_layers[:size]
        return self.of_layers

    def layers(self, kind: int) -> tuple[int, ...]:
        """The layers of a kind."""
        return tuple(layer for layer, other in enumerate(self.of_layers) if other == kind)

    def place(self, layer: int) -> int:
        """How many layers of a layer's kind come before it."""
        return self.of_layers[:layer].count(self.of_layers[layer])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KindStacks:
    """Caches of all layers, as one array per kind with a leading axis for the kind's layers.

    The canonical form of what the caller gives as a sequence; a pytree.

    Attributes:
      stacks: one array (or `Bits`) per kind.
    """

    stacks: tuple[Any, ...]


def by_kind(value: Any, kind: int) -> Any:
    """A kind's entry of an operand that may have one for each, as `Operands` holds it."""
    if isinstance(value, KindStacks):
        return value.stacks[kind]
    return value[kind] if isinstance(value, tuple) else value


def check_layer_kinds(name: str, value: Any) -> tuple[int, ...] | None:
    """Canonical kinds: a tuple of integers, or None if there are none.

    Raises:
      TypeError: not a sequence of integers.
      ValueError: a negative kind, or one that no layer has below one that a layer has.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name}: expected a tuple with an integer for each layer, got {value!r}")
    kinds = []
    for layer, kind in enumerate(value):
        if isinstance(kind, bool | np.bool_) or not isinstance(kind, int | np.integer):
            raise TypeError(f"{name}[{layer}]: expected an integer, got {kind!r}")
        if kind < 0:
            raise ValueError(f"{name}[{layer}]: expected a kind of at least 0, got {kind}")
        kinds.append(int(kind))
    unused = sorted(set(range(max(kinds, default=0))) - set(kinds))
    if unused:
        raise ValueError(
            f"{name}: expected a layer of each kind 0..{max(kinds)}, got none of kind "
            f"{', '.join(map(str, unused))} in {tuple(kinds)}"
        )
    return tuple(kinds)
