"""Small kernels on simulated cores, and arrays in the kernel's layout.

The kernel keeps activations transposed, [128, n, T] for n * 128 features of T tokens; here they are
turned before and after, so that tests of stages share no code with the kernel's own layout, but for
the groups of chunks into which it divides the residual stream.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import nki.isa as nisa
import nki.language as nl
import numpy as np

from jax_tkg import simulator
from jax_tkg.kernels.constants import Constants
from jax_tkg.kernels.divisions import head_chunks
from jax_tkg.kernels.limits import PARTITIONS, PLACE_BYTES, RING_SLOT_BYTES, RING_SLOTS
from jax_tkg.kernels.places import launch_places
from jax_tkg.kernels.sizes import Arithmetic, Context, Core, Sizes, hidden_order
from jax_tkg.kernels.softmax import SoftmaxState, normalizing_factor
from jax_tkg.kernels.weight_ring import WeightRing

_SIZES = {
    **{"B": 1, "S": 1, "H": 128, "I": 128, "d": 64, "q": 1, "k": 1, "S_prior": 0, "S_max": 1},
    "dtype": nl.float32,
}
"""Arguments of `Sizes` for stages to which they do not matter."""

_ARITHMETIC = {"eps": 1e-6, "clamp_bound": 0}
"""Those of `Arithmetic`."""

TARGETS = {"float8_e4m3fn": "trn3"}
"""The machine that a dtype needs, where the oldest has it not."""


def turned(rows: np.ndarray, width: int = PARTITIONS) -> np.ndarray:
    """[T, n * width] as [width, n, T]."""
    tokens, features = rows.shape
    return np.ascontiguousarray(rows.reshape(tokens, features // width, width).transpose(2, 1, 0))


def turned_back(tile: np.ndarray) -> np.ndarray:
    """The inverse of `turned`."""
    width, count, tokens = tile.shape
    return tile.transpose(2, 1, 0).reshape(tokens, count * width)


def turned_heads(heads: np.ndarray) -> np.ndarray:
    """[B, S, n, d] as [rows, n * chunks, T], with two chunks where d is more than 128."""
    B, S, count, d = heads.shape
    return turned(heads.reshape(B * S, count * d), d // head_chunks(d))


def by_head(tile: Any, sizes: Sizes) -> Any:
    """[rows, n * chunks, T] on chip as [rows, n, chunks, T]."""
    return tile.reshape_dim(1, (tile.shape[1] // sizes.head_chunks, sizes.head_chunks))


def load(tensor: Any) -> Any:
    """All of a tensor in HBM on chip; its first dimension is the partition's."""
    tile = nl.ndarray(tensor.shape, dtype=tensor.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=tensor)
    return tile


def load_share(tensor: Any, context: Context) -> Any:
    """This core's chunks of the residual stream [128, n, T]."""
    share = context.hidden_share()
    return load(tensor[:, share.first : share.first + share.count, :])


def store(tile: Any, context: Context) -> Any:
    """A tensor [cores, ...] in HBM: what each core holds."""
    core = context.core
    out = nl.ndarray((core.count, *tile.shape), dtype=tile.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out[core.index], src=tile)
    return out


def normalized(state: SoftmaxState) -> Any:
    """[rows, chunks, n] float32: the attended values of a softmax, as attention has them."""
    weighted = state.weighted
    factor = normalizing_factor(state).expand_dim(1).broadcast(1, weighted.shape[1])
    out = nl.ndarray(weighted.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=out, data1=weighted, data2=factor, op=nl.multiply)
    return out


def same(parts: np.ndarray) -> np.ndarray:
    """What all cores must hold alike."""
    for part in parts[1:]:
        np.testing.assert_allclose(part.astype(np.float64), parts[0].astype(np.float64), rtol=1e-6)
    return parts[0]


@dataclasses.dataclass(frozen=True)
class SmallKernels:
    """Runs small kernels on one or two cores."""

    cores: int

    def features(self, H: int, T: int, dtype: str) -> np.ndarray:
        """[128, H/128]: which feature each place of the residual stream's tile has."""
        sizes = Sizes(**{**_SIZES, "B": T, "H": H, "dtype": dtype})
        places = np.full((PARTITIONS, H // PARTITIONS), -1)
        for first, count in hidden_order(sizes, types.SimpleNamespace(count=self.cores)).groups:
            within = np.arange(count * PARTITIONS).reshape(PARTITIONS, count)
            places[:, first : first + count] = first * PARTITIONS + within
        return places

    def residual(self, rows: np.ndarray) -> np.ndarray:
        """[T, H] in the launch's dtype as the residual stream's tile [128, H/128, T]."""
        T, H = rows.shape
        return np.ascontiguousarray(rows.T[self.features(H, T, rows.dtype.name)])

    def joined(self, parts: np.ndarray, H: int, dtype: str) -> np.ndarray:
        """[T, H] of the cores' shares [cores, 128, n, T], which may overlap in a chunk.

        Args:
          parts: the shares.
          H: features.
          dtype: the launch's.
        """
        T = parts.shape[-1]
        places = self.features(H, T, dtype)
        whole = np.full((H, T), np.nan, np.float64)
        for core, part in enumerate(parts):
            chunks = part.shape[1]
            first = core * (H // PARTITIONS - chunks)
            own = places[:, first : first + chunks]
            both = ~np.isnan(whole[own])
            np.testing.assert_allclose(part[both].astype(np.float64), whole[own][both], rtol=1e-6)
            whole[own] = part
        return whole.T

    def run(
        self,
        body: Callable[..., Any],
        ranks: Sequence[dict[str, Any]],
        target: str = "trn2",
        **changes: Any,
    ) -> list[Any]:
        """What `body(context, **tensors)` returns on each rank.

        Args:
          body: the kernel; `context` is the launch's `Context`.
          ranks: the tensors of each rank.
          target: the simulated machine.
          **changes: of `Sizes` and `Arithmetic`; those that do not matter have defaults.
        """
        options = inspect.signature(Arithmetic).parameters
        numbers = _SIZES | {name: changes[name] for name in changes if name not in options}
        given = _ARITHMETIC | {name: changes[name] for name in changes if name in options}

        def kernel(**tensors: Any) -> Any:
            sizes = Sizes(**numbers)
            ring = WeightRing(RING_SLOTS, RING_SLOT_BYTES)
            loaded, stored = launch_places(PLACE_BYTES)
            arithmetic = Arithmetic(**given)
            constants = Constants(sizes)
            context = Context(sizes, arithmetic, Core(), ring, None, loaded, stored, constants)
            return body(context, **tensors)

        return simulator.run(
            kernel,
            list(ranks),
            lnc=self.cores,
            target=target,
            options=simulator.Options(record=False, ordering="dependencies"),
        ).outputs
