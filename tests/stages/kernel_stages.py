"""The kernel's stages, each alone in a small simulated kernel, on arrays as the reference has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import nki.isa as nisa
import nki.language as nl
import numpy as np

from jax_tkg.call.arguments import Operands
from jax_tkg.kernels.all_reduce import Reduction, add_reduced
from jax_tkg.kernels.attention import attention
from jax_tkg.kernels.attention_blocks import attention_tasks
from jax_tkg.kernels.attention_loads import AttentionLoads
from jax_tkg.kernels.blocks import CacheBlocks
from jax_tkg.kernels.cache_scales import ScoreScale, load_cache_scales
from jax_tkg.kernels.cache_update import (
    LayerCaches,
    await_readers,
    load_offsets,
    rows_of_blocks,
    update_caches,
)
from jax_tkg.kernels.constants import Constants
from jax_tkg.kernels.divisions import head_chunks
from jax_tkg.kernels.layer_operands import LayerOperands
from jax_tkg.kernels.layer_tensor import LayerTensor, Weight, layer_tensor
from jax_tkg.kernels.layout import load_columns, load_features
from jax_tkg.kernels.limits import PARTITIONS
from jax_tkg.kernels.linear import linear, linear_of_shares
from jax_tkg.kernels.masks import Masks
from jax_tkg.kernels.mlp import mlp
from jax_tkg.kernels.rms_norm import Normed, head_gain, normalize_heads, rms_norm
from jax_tkg.kernels.rope import Rotation, apply_rope
from jax_tkg.kernels.row_loads import Columns
from jax_tkg.kernels.sizes import Context
from jax_tkg.kernels.softmax import (
    SoftmaxState,
    column_peaks,
    column_sums,
    exponentials,
    merge,
    merge_packed,
    take_whole,
)
from jax_tkg.kernels.token_blocks import attended_blocks
from jax_tkg.lowering.kernel_operands import context_ranges, grouped
from tests.stages.small_kernels import (
    TARGETS,
    SmallKernels,
    by_head,
    load,
    load_share,
    normalized,
    same,
    store,
    turned,
    turned_back,
    turned_heads,
)

_NOTHING = Operands(**{field.name: None for field in dataclasses.fields(Operands)})


@dataclasses.dataclass(frozen=True)
class KernelStages(SmallKernels):
    """The stages on one or two cores; arrays and results are those of `ReferenceStages`."""

    def rms_norm(
        self, x: np.ndarray, gamma: np.ndarray, eps: float, clamp_bound: float = 0.0
    ) -> np.ndarray:
        B, S, H = x.shape

        def body(context: Context, x: Any, gamma: Any) -> Any:
            normed = rms_norm(
                load_share(x, context), load_features(LayerTensor(gamma), context), context
            )
            factor = normed.token_factor(context)
            if factor == None:  # noqa: E711
                return store(normed.clamped(context).tile, context), None
            return store(normed.tile, context), store(factor, context)

        given = {"x": self.residual(x.reshape(B * S, H)), "gamma": gamma}
        ((tile, factor),) = self.run(
            body, [given], B=B, S=S, H=H, dtype=x.dtype.name, eps=eps, clamp_bound=clamp_bound
        )
        normed = self.joined(tile, H, x.dtype.name)
        if factor is not None:
            # Alike on all partitions; applied to the products of the tile.
            normed = normed * same(same(factor))[:, None]
        return normed.reshape(B, S, H)

    def head_norms(
        self,
        heads: np.ndarray,
        gamma_q: np.ndarray | None,
        gamma_k: np.ndarray | None,
        q: int,
        eps: float,
    ) -> np.ndarray:
        B, S, count, d = heads.shape

        def body(context: Context, heads: Any, gamma_q: Any, gamma_k: Any) -> Any:
            tile = load(heads)
            gains = (head_gain(layer_tensor((g,), 0), context) for g in (gamma_q, gamma_k))
            own = by_head(tile, context.sizes)
            scaled = normalize_heads(own, *gains, context)
            if scaled is not None:
                factor = scaled.factor.expand_dim(2).broadcast(2, own.shape[2])
                nisa.tensor_tensor(dst=own, data1=scaled.tile, data2=factor, op=nl.multiply)
            return store(tile, context)

        given = {"heads": turned_heads(heads), "gamma_q": gamma_q, "gamma_k": gamma_k}
        numbers = {"B": B, "S": S, "d": d, "q": q, "k": count - q, "eps": eps}
        (tile,) = self.run(body, [given], **numbers, dtype=heads.dtype.name)
        return turned_back(same(tile)).reshape(B, S, count, d)

    def rope(
        self,
        heads: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        gains: Sequence[np.ndarray | None] = (None, None),
        q: int = 1,
        eps: float = 1e-6,
    ) -> np.ndarray:
        """With `gains` of the first q heads or of the others, of the normalized heads."""
        B, S, count, d = heads.shape

        def body(context: Context, heads: Any, cos: Any, sin: Any, gains: Any) -> Any:
            tile = load(heads)
            rotation = Rotation(cos, sin, context.sizes)
            own = by_head(tile, context.sizes)
            on_chip = (head_gain(layer_tensor((g,), 0), context) for g in gains)
            scaled = normalize_heads(own, *on_chip, context)
            apply_rope(own, rotation, context, scaled=scaled)
            return store(tile, context)

        given = {"heads": turned_heads(heads), "cos": cos, "sin": sin, "gains": tuple(gains)}
        numbers = {"B": B, "S": S, "d": d, "q": q, "k": count - q, "eps": eps}
        (tile,) = self.run(body, [given], **numbers, dtype=heads.dtype.name)
        return turned_back(same(tile)).reshape(heads.shape)

    def linear(
        self, x: np.ndarray, weight: np.ndarray, scale: np.ndarray | None = None, rows: int = 128
    ) -> np.ndarray:
        """x @ weight by `linear`; `rows` features of x are on the partitions at once.

        Each core makes its share of the columns, in the order of the residual stream.
        """
        B, S, inner = x.shape
        columns = weight.shape[1]

        def body(context: Context, x: Any, weight: Any, scale: Any) -> Any:
            share = context.hidden_share()
            shape = (PARTITIONS, share.count, context.sizes.T)
            dst = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            factors = None
            if scale is not None:
                factors = load(scale[:, share.first : share.first + share.count])
            order = context.hidden_order()
            chosen = Columns(share.first * PARTITIONS, PARTITIONS, scale=factors, order=order)
            linear(dst, load(x), LayerTensor(weight), chosen, context)
            return store(dst, context)

        places = self.features(columns, B * S, x.dtype.name)
        given = {
            "x": turned(x.reshape(B * S, inner), rows),
            "weight": weight,
            "scale": None if scale is None else scale[0][places],
        }
        target = TARGETS.get(weight.dtype.name, "trn2")
        (tile,) = self.run(body, [given], target, B=B, S=S, H=columns, dtype=x.dtype.name)
        return self.joined(tile, columns, x.dtype.name).reshape(B, S, columns)

    def linear_of_shares(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        width: int = 128,
        scale: np.ndarray | None = None,
        times: np.ndarray | None = None,
        squares: bool = False,
        bias: np.ndarray | None = None,
    ) -> np.ndarray:
        """x @ weight by `linear_of_shares`, in tiles of `width` columns; each core makes all.

        Args:
          x: [B, S, n], of which each core holds its share.
          weight: [n, m].
          width: columns of a tile.
          scale: [1, m] or None.
          times: [B, S, m] or None.
          squares: whether x comes without its tokens' factors, 1 / sqrt(mean(x**2)).
          bias: [1, m] or None.
        """
        B, S, inner = x.shape
        columns = weight.shape[1]

        def body(
            context: Context, x: Any, weight: Any, scale: Any, times: Any, total: Any, bias: Any
        ) -> Any:
            shape = (width, columns // width, context.sizes.T)
            dst = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
            per_partition = None if total is None else load(total)
            addends = load_columns(
                layer_tensor((bias,), 0), 0, columns // width, context, width=width
            )
            linear_of_shares(
                dst,
                Normed(load_share(x, context), per_partition),
                LayerTensor(weight),
                Columns(0, width, scale=None if scale is None else load(scale), bias=addends),
                context,
                multiplier=None if times is None else load(times),
            )
            return store(dst, context)

        tile = self.residual(x.reshape(B * S, inner))
        given = {
            "x": tile,
            "weight": weight,
            "scale": None if scale is None else turned(scale[:1], width)[:, :, 0],
            "times": None if times is None else turned(times.reshape(B * S, columns), width),
            "total": np.square(tile.astype(np.float32)).sum(axis=1) if squares else None,
            "bias": bias,
        }
        target = TARGETS.get(weight.dtype.name, "trn2")
        numbers = {"B": B, "S": S, "H": inner, "dtype": x.dtype.name, "eps": 0.0}
        (out,) = self.run(body, [given], target, **numbers)
        return turned_back(same(out)).reshape(B, S, columns)

    def masks(
        self,
        lengths: np.ndarray,
        starts: np.ndarray | None,
        slots: int,
        q: int,
        B: int,
        S: int,
        stored: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The masks of both cores' blocks: [slots, B, q, S], and [S, B, q, S] of the new keys.

        Of caches of `stored` slots: `slots`, or with those that fill the last 128 of them.
        """
        operands = dataclasses.replace(_NOTHING, context_lengths=lengths, context_starts=starts)

        def body(context: Context, ranges: Any) -> Any:
            sizes, core = context.sizes, context.core
            masks = Masks(None, None, sizes, core, ranges=ranges)
            out = nl.ndarray((stored, B * q * S), dtype=nl.uint8, buffer=nl.shared_hbm)
            for task in attention_tasks(sizes, core):
                for tile, segment in zip(masks.get(task), task.block.segments, strict=True):
                    group = task.group
                    target = out[segment.start : segment.start + segment.slots, :]
                    target = target[:, group.first_column : group.first_column + group.columns]
                    target = target.reshape_dim(0, (segment.rows, segment.chunks))
                    nisa.dma_copy(dst=target, src=tile)
            return out, store(masks.active[0], context)

        given = {"ranges": np.asarray(context_ranges(operands))}
        ((cache, active),) = self.run(
            body, [given], B=B, S=S, q=q, S_prior=slots, S_max=stored, dtype="float32"
        )
        own = same(active).reshape(B, S, B, q, S)
        for b, other in np.ndindex(B, B):
            assert b == other or not own[b, :, other].any()
        assert not cache[slots:].any()
        return cache[:slots].reshape(slots, B, q, S), np.stack(
            [own[b, :, b] for b in range(B)], axis=1
        )

    def attention(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        K_cache: np.ndarray,
        V_cache: np.ndarray,
        mask_cache: np.ndarray,
        mask_active: np.ndarray,
        sinks: np.ndarray | None = None,
        scale: float | None = None,
        softcap: float = 0.0,
        block_tables: np.ndarray | None = None,
        k_scale: np.ndarray | None = None,
        v_scale: np.ndarray | None = None,
    ) -> np.ndarray:
        B, S, q, d = query.shape
        k, slots = key.shape[2], mask_cache.shape[0]
        active = np.zeros((B, S, B, q, S), np.uint8)
        for b in range(B):
            active[b, :, b] = mask_active[:, b] != 0
        given = {
            "heads": turned_heads(np.concatenate([query, key, value], axis=2)),
            "K_cache": K_cache,
            "V_cache": V_cache,
            "prior": None,
            "active": active.reshape(B * S, -1),
            "sinks": sinks,
            "numbers": None,
            "scales": (k_scale, v_scale),
        }
        block_len = 0 if block_tables is None else K_cache.shape[-1]
        if slots:
            ones = (mask_cache != 0).astype(np.uint8)
            given["prior"] = np.asarray(grouped(ones, d, query.dtype.itemsize, block_len))
        numbers: dict[str, Any] = {"B": B, "S": S, "d": d, "q": q, "k": k, "S_prior": slots}
        numbers["S_max"] = K_cache.shape[-1]
        if block_tables is not None:
            numbers |= {"cache_rows": len(K_cache), "n": block_tables.shape[1]}
            numbers["block_len"] = K_cache.shape[-1]
            given["numbers"] = block_tables.reshape(1, -1).view(np.uint32)

        def body(
            context: Context,
            heads: Any,
            K_cache: Any,
            V_cache: Any,
            prior: Any,
            active: Any,
            sinks: Any,
            numbers: Any,
            scales: Any,
        ) -> Any:
            blocks = None
            if numbers is not None:
                context.ring.clear()
                blocks = CacheBlocks(K_cache, V_cache, 0, load(numbers), context.sizes)
            caches = (LayerTensor(K_cache), LayerTensor(V_cache))
            attended, (values,) = attention(
                by_head(load(heads), context.sizes),
                AttentionLoads(*caches, context, blocks),
                Masks(prior, active, context.sizes, context.core),
                context,
                sinks=layer_tensor((sinks,), 0),
                scales=load_cache_scales(*(layer_tensor((one,), 0) for one in scales), context),
            )
            return store(attended, context), store(values, context)

        numbers |= {"softmax_scale": scale, "attention_softcap": softcap}
        ((attended, values),) = self.run(body, [given], **numbers, dtype=query.dtype.name)
        np.testing.assert_array_equal(same(values), value.reshape(B * S, k, d))
        return turned_back(same(attended)).reshape(B, S, q, d)

    def softmax(
        self,
        scores: Sequence[np.ndarray],
        values: Sequence[np.ndarray],
        scale: float,
        packed: bool = False,
        whole: bool = False,
    ) -> np.ndarray:
        """softmax(scale * scores) @ values over blocks of keys, [n, d].

        Args:
          scores: of each block [P, chunks, n]; `MASKED` where not attended.
          values: of each block [P, chunks, d].
          scale: of the scores.
          packed: whether each block has a state of its own, as cores have, merged at the end.
          whole: whether there is one block, of all keys.
        """
        d, columns = values[0].shape[-1], scores[0].shape[-1]
        factor = ScoreScale(scale)
        chunks = head_chunks(d)
        rows = d // chunks

        def add(state: Any, tile: Any, value: Any, constants: Constants) -> None:
            peaks = column_peaks(tile, constants)
            weights = exponentials(tile, peaks, factor, nl.float32)
            weighted = nl.ndarray((rows, chunks, columns), dtype=nl.float32, buffer=nl.psum)
            for half, chunk in np.ndindex(chunks, tile.shape[1]):
                nisa.nc_matmul(
                    dst=weighted[:, half, :],
                    stationary=value[:, chunk, half * rows : (half + 1) * rows],
                    moving=weights[:, chunk, :],
                    accumulate=chunk > 0,
                )
            result = (peaks, column_sums(weights, constants), weighted)
            if whole:
                kept = nl.ndarray(peaks.shape, dtype=nl.float32, buffer=nl.sbuf)
                nisa.tensor_copy(dst=kept, src=peaks)
                take_whole(state, kept, *result[1:])
            else:
                merge(state, *result, factor)

        def body(context: Context, scores: Any, values: Any) -> Any:
            constants = context.constants
            state = SoftmaxState(rows, chunks, columns)
            for index, (block, value) in enumerate(zip(scores, values, strict=True)):
                if packed and index > 0:
                    other = SoftmaxState(rows, chunks, columns)
                    add(other, load(block), load(value), constants)
                    merge_packed(state, other.packed, factor)
                else:
                    add(state, load(block), load(value), constants)
            return store(normalized(state), context)

        (out,) = self.run(body, [{"scores": list(scores), "values": list(values)}], d=d)
        return turned_back(same(out))

    def mlp(
        self,
        x: np.ndarray,
        weights: Sequence[np.ndarray],
        scales: Sequence[np.ndarray | None],
        clamp_bound: float,
        activation: str = "silu",
    ) -> np.ndarray:
        """Args: x [B, S, H]; gate, up and down; the scale of each, or None; the clamp's bound."""
        B, S, H = x.shape

        def body(context: Context, x: Any, weights: Any, scales: Any) -> Any:
            gate, up, down = (
                Weight((weight,), scale=(scale,)).layer(0)
                for weight, scale in zip(weights, scales, strict=True)
            )
            layer = LayerOperands(None, None, gate, up, down, None, None)
            normed = Normed(load_share(x, context), None)
            return store(mlp(normed, layer, context), context)

        given = {
            "x": self.residual(x.reshape(B * S, H)),
            "weights": tuple(weights),
            "scales": tuple(scales),
        }
        target = max(TARGETS.get(weight.dtype.name, "trn2") for weight in weights)
        numbers = {"B": B, "S": S, "H": H, "I": weights[0].shape[1]}
        numbers |= {"clamp_bound": clamp_bound, "activation": activation}
        (out,) = self.run(body, [given], target, **numbers, dtype=x.dtype.name)
        return self.joined(out, H, x.dtype.name).reshape(B, S, H)

    def add_reduced(
        self,
        xs: Sequence[np.ndarray],
        partials: Sequence[np.ndarray],
        groups: tuple[tuple[int, ...], ...] | None,
        on_chip: bool,
        bias: np.ndarray | None = None,
        gamma: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Per rank x + its group's sum of the partials, with a bias and normalized if given."""
        from nki.collectives import ReplicaGroup

        B, S, H = xs[0].shape

        def body(context: Context, x: Any, partial: Any, bias: Any, gamma: Any) -> Any:
            reduction = Reduction(None if groups is None else ReplicaGroup(groups), on_chip)
            tile = load_share(x, context)
            after = add_reduced(
                tile,
                load_share(partial, context),
                reduction,
                context,
                bias=load_features(layer_tensor((bias,), 0), context),
                gain=load_features(layer_tensor((gamma,), 0), context),
            )
            return store(after, context)

        dtype = xs[0].dtype.name
        places = self.features(H, B * S, dtype)
        given = [
            {
                "x": self.residual(x.reshape(B * S, H)),
                "partial": np.ascontiguousarray(partial.reshape(B * S, H).T[places]),
                "bias": bias,
                "gamma": gamma,
            }
            for x, partial in zip(xs, partials, strict=True)
        ]
        parts = self.run(body, given, B=B, S=S, H=H, dtype=dtype)
        return [self.joined(part, H, dtype).reshape(B, S, H) for part in parts]

    def write_caches(
        self,
        K_cache: np.ndarray,
        V_cache: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        offsets: dict[str, np.ndarray | None],
        layer: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The caches with the new keys and values at `kernel_operands.write_offsets`.

        Args:
          K_cache: [B, k, d, S_max], or [L, ...] where `layer` is given.
          V_cache: [B, k, S_max, d], likewise.
          key: [B, S, k, d].
          value: [B, S, k, d].
          offsets: of one layer.
          layer: which layer of the caches is written, or None.
        """
        B, S, k, d = key.shape
        # The layer's heads begin with a query.
        heads = np.concatenate([np.zeros_like(key[:, :, :1]), key, value], axis=2)

        def body(context: Context, K_cache: Any, V_cache: Any, heads: Any, offsets: Any) -> Any:
            sizes = context.sizes
            loaded = by_head(load(heads), sizes)
            one_K = K_cache if layer is None else K_cache[layer]
            one_V = V_cache if layer is None else V_cache[layer]
            caches = LayerCaches(
                LayerTensor(one_K), LayerTensor(one_V), K_cache, V_cache, layer or 0
            )
            blocks = attended_blocks(sizes, context.core)
            caches.offsets = load_offsets(
                *(layer_tensor(table, 0) for table in offsets), None, blocks
            )
            values = rows_of_blocks(loaded, 1 + k, context)
            await_readers(caches, context.core)
            update_caches(caches, loaded, values, context)
            return K_cache, V_cache

        given = {
            "K_cache": K_cache,
            "V_cache": V_cache,
            "heads": turned_heads(heads),
            "offsets": tuple(
                offsets[name] for name in ("window_offsets", "key_offsets", "value_offsets")
            ),
        }
        numbers = {"B": B, "S": S, "d": d, "q": 1, "k": k, "S_max": K_cache.shape[-1]}
        ((K, V),) = self.run(body, [given], **numbers, dtype=key.dtype.name)
        return K, V
