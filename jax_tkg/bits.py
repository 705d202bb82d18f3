"""Low-precision arrays held as unsigned integers, the form that XLA reads fastest on a CPU.

XLA:CPU carries bfloat16 and float8 arrays through f32 (its float normalization; up to JAX 0.10 for
bfloat16, on every version for float8), so that taking a block of a weight up-casts all of it first
and updating a cache copies it. Integers are left alone: blocks of them are decoded where they are
needed. The bits are the same, so nothing is rounded and no memory is added; only the dtype that
XLA sees differs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

_INTEGERS: dict[int, np.dtype] = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16)}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["bits"], meta_fields=["dtype"])
@dataclasses.dataclass(frozen=True)
class Bits:
    """An array whose bits are held as unsigned integers; a pytree with one leaf.

    Takes the place of an array among the matrices and caches given to `jax_tkg.transformer_tkg`.
    Its leaf has the array's shape, so PartitionSpecs and shardings of the array are the leaf's.

    Attributes:
      bits: uint8 or uint16, of the array's shape.
      dtype: the array's own dtype, of as many bits.
    """

    bits: Any
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(self.bits.shape)

    @property
    def ndim(self) -> int:
        """The array's number of dimensions."""
        return len(self.bits.shape)

    def __getitem__(self, index: Any) -> Bits:
        return Bits(self.bits[index], self.dtype)

    def values(self) -> jax.Array:
        """The array in its own dtype."""
        return jax.lax.bitcast_convert_type(self.bits, self.dtype)


jax.export.register_pytree_node_serialization(
    Bits,
    serialized_name="jax_tkg.bits.Bits",
    serialize_auxdata=lambda fields: fields[0].name.encode(),
    deserialize_auxdata=lambda name: (jnp.dtype(name.decode()),),
)


def integers_of(dtype: jax.typing.DTypeLike) -> np.dtype | None:
    """The unsigned integers that `Bits` of a dtype hold; None for a dtype that is not held so."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return _INTEGERS.get(jnp.finfo(dtype).bits)


def as_bits(array: Any) -> Any:
    """A matrix or cache in the form for CPUs.

    `jax.tree.map(as_bits, caches)` converts a list of them.

    Args:
      array: an array of JAX or NumPy of any shape, or what this function returned.

    Returns:
      `Bits` for a float dtype of 8 or 16 bits; anything else as it is. NumPy arrays are viewed,
      arrays of JAX copied once.

    Raises:
      TypeError: it is no array, or its bytes are not in the machine's order.
    """
    if isinstance(array, Bits):
        return array
    if not hasattr(array, "dtype"):
        raise TypeError(
            "array: expected an array of JAX or NumPy (jax.tree.map(as_bits, ...) converts a list "
            f"of them), got {type(array).__name__}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    dtype = jnp.dtype(array.dtype)
    if not dtype.isnative:
        raise TypeError(
            f"array: expected an array in the machine's byte order, got dtype {dtype.str!r}"
        )
    integers = integers_of(dtype)
    if integers is None:
        return array
    if isinstance(array, np.ndarray):
        return Bits(array.view(integers), dtype)
    return Bits(_reinterpreted(array, integers), dtype)


class _HasMatrices(Protocol):
    def map_matrices(self, convert: Callable[[Any], Any]) -> Self: ...


_Weights = TypeVar("_Weights", bound=_HasMatrices)


def weights_as_bits(weights: _Weights) -> _Weights:
    """All weights of a model in the form for CPUs; gains, biases and scales stay arrays.

    Args:
      weights: a `jax_tkg.weights.TransformerWeights`, of lists or layer-stacked.
    """
    return weights.map_matrices(as_bits)


def without_bits(tree: Any) -> Any:
    """A pytree with arrays in place of `Bits`."""

    def plain(node: Any) -> Any:
        return node.values() if isinstance(node, Bits) else node

    return jax.tree.map(plain, tree, is_leaf=lambda node: isinstance(node, Bits))


@functools.partial(jax.jit, static_argnums=1)
def _reinterpreted(array: jax.Array, dtype: np.dtype) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, dtype)
