"""Random inputs of the operation, with the distributions of AWS's tests; shared by test modules.

Activations are uniform in [-1, 1], projections N(0, 1/fan_in), gammas uniform in [0.5, 1.5].
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_tkg.bits import as_bits
from jax_tkg.call.dimensions import SOLVING_ORDER
from jax_tkg.call.operand_table import BY_NAME, OPERANDS, Operand, names
from jax_tkg.call.options import ACTIVATIONS
from tests import oracle

SCALE_NAMES = {
    row.name: row.scaled_by
    for row in OPERANDS
    if row.scaled_by is not None and row.kind == "weight"
}
LAYER_OPTIONS = tuple(
    row.name
    for row in OPERANDS
    if row.optional and row.kind in ("gain", "bias", "logit") and not row.needs_experts
)
"""Optional operands of a layer that a case may have in `Shape.options`."""

EXPERT_OPTIONS = tuple(row.name for row in OPERANDS if row.needs_experts and row.kind == "bias")
"""Those of a layer with experts; "bias_selections" only with "sigmoid_topk"."""

FLOAT8 = ("float8_e4m3", "float8_e4m3fn", "float8_e5m2")

HEAD_SIZES = (64, 128, 64, 128, 64, 128, 80, 96, 192, 256)
"""What drawn cases have: mostly the usual ones."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes and form of one case; letters as in the package."""

    B: int = 2
    S: int = 2
    q: int = 4
    k: int = 2
    d: int = 64
    H: int = 128
    I: int = 128  # noqa: E741
    L: int = 2
    S_ctx: int = 20
    S_max: int = 24
    dtype: str = "float32"
    unified: bool = False
    context: str = "masks"
    """What says which cache slots are attended: "masks", or "lengths" or "ranges" (lengths and
    starts) of sequences, "each_length" or "each_range" of tokens. `unified` is then causal."""
    block_len: int = 0
    """Slots of a block, which divides S_ctx; 0 for flat caches."""
    positions: str = "first"
    """ "first" for [B, 1], "each" for [B, S], "none" for no update."""
    quantized: tuple[tuple[str | None, ...], ...] = ()
    """Per layer the float8 dtypes of gate, up and down, each or None; empty for none at all."""
    clamp_bound: float = 0.0
    scale_rows: int = 128
    cache_dtype: str | None = None
    """The float8 dtype of caches, or None."""
    plain_caches: tuple[int, ...] = ()
    """Layers whose caches are not float8 then; only for lists."""
    layer_kinds: tuple[int, ...] = ()
    """The kind of each layer; empty for equal layers."""
    kinds: tuple[tuple[int, int, bool, str], ...] = ()
    """S_ctx, S_max, unified and positions of the kinds after the first, which has those above."""
    options: tuple[str, ...] = ()
    """Optional operands, beside scales and masks, that the case has."""
    bare_layers: tuple[int, ...] = ()
    """Layers that are without these operands; only for lists."""
    softmax_scale: float | None = None
    attention_softcap: float = 0.0
    activation: str = "silu"
    E: int = 0
    """Experts; 0 for dense layers."""
    E_held: int = 0
    I_expert: int = 0
    I_shared: int = 0
    V: int = 0
    """Columns of the head; 0 for none."""
    dense_layers: tuple[int, ...] = ()
    """Layers without experts, where E > 0; only for lists."""
    experts_per_token: int | None = None
    routing: str = "softmax_topk"
    normalize_expert_weights: bool = False
    routed_scale: float = 1.0
    activation_limit: float = 7.0
    activation_alpha: float = 1.702

    def has_experts(self, layer: int) -> bool:
        return self.E > 0 and layer not in self.dense_layers

    def of_kind(self, kind: int) -> Shape:
        """The shape of a model whose layers are all of one kind."""
        own = dataclasses.replace(self, layer_kinds=(), kinds=())
        if kind == 0:
            return own
        S_ctx, S_max, unified, positions = self.kinds[kind - 1]
        return dataclasses.replace(
            own, S_ctx=S_ctx, S_max=S_max, unified=unified, positions=positions
        )

    def of_layer(self, layer: int) -> Shape:
        """The shape that a layer has."""
        return self.of_kind(self.layer_kinds[layer]) if self.layer_kinds else self

    @property
    def n(self) -> int:
        """Entries of a sequence's block table."""
        return self.S_ctx // self.block_len if self.block_len else 0

    @property
    def blocks(self) -> int:
        """Blocks of a cache, two of which belong to no sequence."""
        return self.B * self.n + 2 if self.block_len else 0

    def array_shape(self, name: str, layer: int = 0) -> tuple[int, ...]:
        """The shape of an operand, of one layer where it is per layer."""
        row = BY_NAME[name]
        layout = row.in_blocks if self.block_len and row.in_blocks else row.layout
        if row.of_experts is not None and self.has_experts(layer):
            layout = row.of_experts
        return layout.shape({letter: getattr(self, letter) for letter in SOLVING_ORDER})


EXPERTS = Shape(E=8, E_held=8, I_expert=48, experts_per_token=2)
"""Layers with experts."""

EVERY_OPTION: dict[str, Any] = {
    "options": LAYER_OPTIONS,
    "softmax_scale": 0.2,
    "attention_softcap": 2.0,
    "activation": "gelu_tanh",
}
"""Fields of a `Shape` that has all options of a layer."""

ONE_OPTION: dict[str, dict[str, Any]] = {
    **{name: {"options": (name,)} for name in LAYER_OPTIONS},
    "softmax_scale": {"softmax_scale": 0.3},
    "attention_softcap": {"attention_softcap": 3.0},
    **{f"activation_{name}": {"activation": name} for name in ACTIVATIONS[1:]},
}
"""Fields of a `Shape` that has one option of a layer, by the option."""


def layer_options(shape: Shape) -> set[str]:
    """The options of a layer that a case has, named as in `ONE_OPTION`."""
    found = set(shape.options)
    if shape.softmax_scale is not None:
        found.add("softmax_scale")
    if shape.attention_softcap:
        found.add("attention_softcap")
    if shape.activation != ACTIVATIONS[0]:
        found.add(f"activation_{shape.activation}")
    return found


SHAPES = {
    "one_head": Shape(B=1, S=1, q=1, k=1, d=128, unified=True),
    "first_token": Shape(B=1, S=1, S_ctx=1, S_max=1, unified=True),
    "shared_kv_head": Shape(q=4, k=1, S=5, S_ctx=40, S_max=64),
    "two_kv_heads": Shape(q=8, k=2, B=4, I=256, positions="each"),
    "odd_groups": Shape(q=9, k=3, H=256, S=8, unified=True),
    "many_heads": Shape(q=32, k=8, B=1, S=1, L=1, H=512, I=384),
    "four_layers_bfloat16": Shape(
        S=1, H=512, I=512, L=4, S_ctx=64, S_max=80, dtype="bfloat16", unified=True
    ),
    "float8": Shape(
        L=3,
        quantized=(
            ("float8_e4m3",) * 3,
            (None, None, None),
            ("float8_e4m3fn", None, "float8_e5m2"),
        ),
        clamp_bound=0.5,
    ),
    "whole_capacity": Shape(S_ctx=24, S_max=24, positions="each"),
    "no_update": Shape(positions="none"),
    "float8_caches": Shape(
        S=3, d=32, S_ctx=40, S_max=44, positions="each", cache_dtype="float8_e4m3"
    ),
    "large_heads": Shape(S=3, d=256, I=256, L=1, options=("W_gamma_qs", "W_gamma_ks")),
    "every_option": Shape(q=6, S=3, bare_layers=(0,), **EVERY_OPTION),
}
"""One of each kind: what every implementation has to get right."""

KINDS = Shape(L=5, layer_kinds=(0, 0, 1, 0, 0), kinds=((30, 40, True, "each"),))
"""Two kinds of layers, in a pattern of three that is cut off."""


def uniform(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> np.ndarray:
    return rng.uniform(low, high, shape).astype(np.float32)


def projection(rng: np.random.Generator, *sizes: int) -> np.ndarray:
    """N(0, 1/fan_in), [rows, columns] or more of them."""
    drawn = rng.standard_normal(sizes)
    # In place: of a large model each copy is half a gigabyte.
    drawn /= np.sqrt(sizes[-2])
    return drawn.astype(np.float32)


def quantize(weight: np.ndarray, dtype: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A float8 weight and its scale; per-column scales that differ a lot from each other."""
    kind = np.dtype(getattr(ml_dtypes, dtype))
    largest = float(ml_dtypes.finfo(kind).max)
    scale = np.abs(weight).max(axis=-2, keepdims=True) / largest
    quantized = np.clip(weight / scale, -largest, largest).astype(kind)
    shape = (*weight.shape[:-2], rows, weight.shape[-1])
    return quantized, np.broadcast_to(scale, shape).astype(np.float32)


def random_weights(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """One rank's weights, as lists of NumPy arrays."""
    s = shape
    draws = {
        "weight": projection,
        "router": projection,
        "gain": lambda rng, *sizes: uniform(rng, sizes, 0.5, 1.5),
        "bias": lambda rng, *sizes: uniform(rng, sizes, -0.5, 0.5),
        "logit": lambda rng, *sizes: uniform(rng, sizes, -2, 2),
    }
    optional = {
        *s.options,
        *(("W_routers",) if s.E else ()),
        *(names("weight") if s.I_shared else ()),
    }
    dtype = jnp.dtype(s.dtype)

    def draw(row: Operand, layer: int) -> np.ndarray | None:
        if row.needs_experts and not s.has_experts(layer):
            return None
        array = draws[row.kind](rng, *s.array_shape(row.name, layer))
        return array if row.kind == "logit" else array.astype(dtype)

    weights: dict[str, Any] = {
        row.name: [draw(row, layer) for layer in range(s.L)]
        for row in OPERANDS
        if row.kind in draws and (not row.optional or row.name in optional)
    }
    for name in s.options:
        for layer in s.bare_layers:
            weights[name][layer] = None
    if s.quantized:
        for name, scales in SCALE_NAMES.items():
            weights[scales] = [None] * s.L
            position = list(SCALE_NAMES).index(name)
            for layer, kinds in enumerate(s.quantized):
                kind = kinds[position]
                if kind is not None:
                    wide = weights[name][layer].astype(np.float32)
                    weights[name][layer], weights[scales][layer] = quantize(
                        wide, kind, 1 if s.has_experts(layer) else s.scale_rows
                    )
    return weights


def random_positions(shape: Shape, rng: np.random.Generator) -> np.ndarray | None:
    """Slots all over the cache, at and past its end, and skipped ones."""
    s = shape
    edge = s.S_max + 3
    if s.positions == "none":
        return None
    if s.positions == "first":
        # A third of the sequences cross the end of the cache, or stand right before or after it.
        near = rng.integers(max(0, s.S_max - s.S - 1), edge, (s.B, 1))
        ids = np.where(rng.random((s.B, 1)) < 0.3, near, rng.integers(0, edge, (s.B, 1)))
        ids[rng.random((s.B, 1)) < 0.2] = -1
        # The unsigned form of the skip marker is AWS's.
        return ids.astype(np.uint32) if rng.random() < 0.5 else ids.astype(np.int32)
    ids = np.array([rng.permutation(edge)[: s.S] for _ in range(s.B)])
    ids[rng.random(ids.shape) < 0.2] = -1
    return ids.astype(np.int32)


def random_masks(shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """mask_cache and mask_active: of random entries, or causal over sequences of random length.

    A tenth of the queries attend nothing at all, neither cached nor new.
    """
    s = shape
    if rng.random() < 0.3:
        filled = np.arange(s.S_ctx)[:, None] < rng.integers(0, s.S_ctx + 1, s.B)
        cache = np.tile(filled[:, :, None, None], (1, 1, s.q, s.S))
        causal = np.tril(np.ones((s.S, s.S), bool)).T
        active = np.tile(causal[:, None, None, :], (1, s.B, s.q, 1))
    else:
        cache = rng.random((s.S_ctx, s.B, s.q, s.S)) < rng.choice([0.0, 0.3, 0.9, 1.0])
        active = rng.random((s.S, s.B, s.q, s.S)) < rng.choice([0.0, 0.3, 0.9, 1.0])
    blind = rng.random((s.B, s.q, s.S)) < 0.1
    if s.unified:
        cache[s.S_ctx - s.S :] = active
    cache[:, blind], active[:, blind] = False, False
    return cache, None if s.unified else active


def random_ranges(
    shape: Shape, rng: np.random.Generator
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """context_lengths and context_starts: nothing attended, all slots, and more than there are.

    A third of the starts is above the length.
    """
    s = shape
    if s.context == "masks":
        return None, None
    sizes = (s.B, s.S) if s.context.startswith("each") else (s.B,)
    ends = rng.integers(-1, s.S_ctx + 3, sizes)
    ends[rng.random(sizes) < 0.2] = rng.choice([0, s.S_ctx])
    if "range" not in s.context:
        return ends.astype(np.int32), None
    starts = rng.integers(-1, s.S_ctx + 3, sizes)
    ordered = rng.random(sizes) < 0.5
    starts = np.where(ordered, np.minimum(starts, ends), starts)
    return ends.astype(np.int32), starts.astype(np.int32)


def random_blocks(
    shape: Shape, rng: np.random.Generator, lengths: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """block_tables and position_ids of caches in blocks.

    Half of the cases share a first block; entries beyond the lengths are often missing. Slots are
    of blocks that one sequence has alone, some beyond the cache or skipped.
    """
    s = shape
    tables = rng.permutation(s.blocks)[: s.B * s.n].reshape(s.B, s.n).astype(np.int32)
    shares = s.B > 1 and rng.random() < 0.5
    if shares:
        tables[1, 0] = tables[0, 0]
    if lengths is not None:
        needed = -(-np.clip(lengths, 0, s.S_ctx).reshape(s.B, -1).max(axis=1) // s.block_len)
        tables[(np.arange(s.n) >= needed[:, None]) & (rng.random((s.B, s.n)) < 0.7)] = -1
    ids = np.full((s.B, 1 if s.positions == "first" else s.S), -1, np.int64)
    for b in range(s.B):
        own = [block for block in tables[b, int(shares) :] if block >= 0]
        slots = [block * s.block_len + offset for block in own for offset in range(s.block_len)]
        if len(slots) >= ids.shape[1] and rng.random() < 0.9:
            ids[b] = rng.permutation(slots)[: ids.shape[1]]
    ids[rng.random(ids.shape) < 0.1] = rng.choice([-1, s.blocks * s.block_len, 2**31 - 1])
    return tables, None if s.positions == "none" else ids.astype(np.int32)


def near_tie(rng: np.random.Generator, E: int, chosen: int) -> np.ndarray:
    """[1, E] float32 logits in a drawn order, of which number `chosen` and the next in size differ
    by 2**-18."""
    logits = np.concatenate([np.arange(chosen, 0, -1), [1 - 2.0**-18], -np.arange(E - chosen - 1)])
    return rng.permutation(logits).astype(np.float32)[np.newaxis]


def random_inputs(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """Everything but the weights: tokens, caches, tables, masks, positions."""
    s = shape
    if s.layer_kinds:
        return _inputs_of_kinds(s, rng)
    angles = uniform(rng, (s.d // 2, s.B, s.S), -np.pi, np.pi)
    # Without a mask of the cache S_ctx may be less than S.
    mask_cache, mask_active = random_masks(dataclasses.replace(s, S_ctx=max(s.S, s.S_ctx)), rng)
    context_lengths, context_starts = random_ranges(s, rng)
    if s.block_len:
        known = context_lengths if context_starts is None else None
        block_tables, position_ids = random_blocks(s, rng, known)
    else:
        block_tables, position_ids = None, random_positions(s, rng)
    return {
        "X": uniform(rng, (s.B, s.S, s.H), -1, 1).astype(jnp.dtype(s.dtype)),
        **random_caches(s, rng),
        "RoPE_cos": np.cos(angles),
        "RoPE_sin": np.sin(angles),
        "mask_cache": mask_cache if context_lengths is None else None,
        "mask_active": mask_active,
        "position_ids": position_ids,
        "context_lengths": context_lengths,
        "context_starts": context_starts,
        "block_tables": block_tables,
    }


def random_caches(shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """K_caches and V_caches, and their scales if they are float8: some clip what is usual."""
    s = shape
    found: dict[str, Any] = {}
    for name in names("cache"):
        caches = [uniform(rng, s.array_shape(name), -1, 1) for _ in range(s.L)]
        dtypes = [jnp.dtype(s.dtype)] * s.L
        if s.cache_dtype is not None:
            kind = np.dtype(getattr(ml_dtypes, s.cache_dtype))
            largest = float(ml_dtypes.finfo(kind).max)
            scales: list[Any] = [None] * s.L
            for layer in {*range(s.L)} - {*s.plain_caches}:
                dtypes[layer] = kind
                scales[layer] = np.exp(uniform(rng, (1, 1), 1, 6))
                caches[layer] = np.clip(caches[layer] * scales[layer], -largest, largest)
            found[str(BY_NAME[name].scaled_by)] = scales
        found[name] = [cache.astype(dtype) for cache, dtype in zip(caches, dtypes, strict=True)]
    return found


def _inputs_of_kinds(s: Shape, rng: np.random.Generator) -> dict[str, Any]:
    """`random_inputs` of each kind: tuples of tables, masks and positions, caches of each layer."""
    of_kind = [random_inputs(s.of_kind(kind), rng) for kind in range(1 + len(s.kinds))]
    inputs: dict[str, Any] = {"X": of_kind[0]["X"]}
    for row in OPERANDS:
        if row.per_kind:
            inputs[row.name] = tuple(own[row.name] for own in of_kind)
        elif row.kind in ("cache", "cache_scale") and row.name in of_kind[0]:
            inputs[row.name] = [
                of_kind[kind][row.name][layer] for layer, kind in enumerate(s.layer_kinds)
            ]
    return inputs


def stack(arguments: dict[str, Any], layer_kinds: tuple[int, ...] = ()) -> dict[str, Any]:
    """Lists of arrays as one array each, caches as one for each kind; a list of Nones as None."""

    def join(name: str, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if layer_kinds and name in names("cache"):
            return tuple(
                np.stack([value[layer] for layer, other in enumerate(layer_kinds) if other == kind])
                for kind in range(max(layer_kinds) + 1)
            )
        return None if value[0] is None else np.stack(value)

    return {name: join(name, value) for name, value in arguments.items()}


def held_as_bits(arguments: dict[str, Any]) -> dict[str, Any]:
    """The matrices and caches among the arguments, as `Bits`."""
    found = [name for name in names("weight", "router", "cache") if name in arguments]
    return {name: jax.tree.map(as_bits, arguments[name]) for name in found}


def by_layer(caches: Any, layer_kinds: tuple[int, ...]) -> Any:
    """Resulting caches layer by layer, of a list, a stack, or a stack for each kind."""
    if not layer_kinds or caches[0].ndim < 5:
        return caches
    stacks = [iter(stack) for stack in caches]
    return [next(stacks[kind]) for kind in layer_kinds]


def context_bucket(shape: Shape) -> int | tuple[int, ...] | None:
    """The option, of a case without masks."""
    if shape.context == "masks" or shape.block_len:
        return None
    if not shape.layer_kinds:
        return shape.S_ctx
    return tuple(shape.of_kind(kind).S_ctx for kind in range(1 + len(shape.kinds)))


def options(shape: Shape) -> dict[str, Any]:
    """The static arguments of a case: those that change the result, and the number of layers."""
    return {
        "num_layers": shape.L,
        "eps": 1e-5,
        "clamp_bound": shape.clamp_bound,
        "softmax_scale": shape.softmax_scale,
        "attention_softcap": shape.attention_softcap,
        "activation": shape.activation,
        "activation_limit": shape.activation_limit,
        "activation_alpha": shape.activation_alpha,
        "experts_per_token": shape.experts_per_token,
        "routing": shape.routing,
        "normalize_expert_weights": shape.normalize_expert_weights,
        "routed_scale": shape.routed_scale,
        "layer_kinds": shape.layer_kinds or None,
        "context_bucket": context_bucket(shape),
    }


def expected(
    shape: Shape,
    weights: list[dict[str, Any]],
    inputs: list[dict[str, Any]],
    gaps: list[float] | None = None,
) -> tuple[np.ndarray, list[list[np.ndarray]], list[list[np.ndarray]], list[set[tuple[int, int]]]]:
    """The oracle's answer for ranks with their own weights, caches and masks.

    Tokens, gains, the output's bias, tables and positions are those of the first rank. `gaps` gets
    the distances between the experts that tokens chose and the others, in what they chose by.
    """
    fields = [field.name for field in dataclasses.fields(oracle.Rank)]
    ranks = [
        oracle.Rank(**{name: {**w, **i}.get(name) for name in fields})
        for w, i in zip(weights, inputs, strict=True)
    ]
    shared = (*names("gain"), "bias_outs", "RoPE_cos", "RoPE_sin", "position_ids")
    common = {name: {**weights[0], **inputs[0]}.get(name) for name in shared}
    common["gaps"] = [] if gaps is None else gaps
    return oracle.transformer_tkg(inputs[0]["X"], ranks, **options(shape), **common)


def check(
    actual: Any,
    shape: Shape,
    given: dict[str, Any],
    hidden: np.ndarray,
    K: list[np.ndarray],
    V: list[np.ndarray],
    written: list[set[tuple[int, int]]],
) -> None:
    """Compares one rank's results: values within tolerance, unwritten slots to the bit."""
    tolerance = 1e-5 if shape.dtype == "float32" else 0.02
    got = np.asarray(actual.hidden).astype(np.float64)
    assert actual.hidden.dtype == jnp.dtype(shape.dtype)
    assert got.shape == hidden.shape
    assert np.isfinite(got).all()
    np.testing.assert_array_less(np.abs(got - hidden).max(), tolerance * np.abs(hidden).max())
    for layer in range(shape.L):
        for name, want, results, axis in (
            ("K_caches", K, by_layer(actual.K_caches, shape.layer_kinds), 3),
            ("V_caches", V, by_layer(actual.V_caches, shape.layer_kinds), 2),
        ):
            after, before = np.asarray(results[layer]), np.asarray(given[name][layer])
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
            limit = tolerance * max(1.0, np.abs(want[layer]).max())
            error = np.abs(after.astype(np.float64) - want[layer])
            if after.dtype.itemsize == 1:
                # Half of the last of three bits, of normal numbers and of those below 2**-6.
                error = error - np.maximum(np.abs(want[layer]) * 2.0**-4, 2.0**-10)
            np.testing.assert_array_less(error.max(), limit)
            # Sequences, or blocks, and their slots.
            for b in range(after.shape[0]):
                rest = [t for t in range(after.shape[axis]) if (b, t) not in written[layer]]
                unwritten = np.take(after[b], rest, axis - 1)
                assert unwritten.tobytes() == np.take(before[b], rest, axis - 1).tobytes()
