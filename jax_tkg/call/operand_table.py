"""The arrays of `transformer_tkg`, one row each. What lists arguments elsewhere derives from it.

Derived are the containers (`Operands`, `TransformerWeights`, `TransformerTkgSpecs`), the checks and
their messages, batching, PartitionSpecs, low-precision storage, the kernel's tensors, the profile's
arrays and traffic, the tests' random inputs, and docs/arguments.md.

Letters: B batch, S (S_tkg) new tokens, H hidden, I MLP intermediate per rank, d (d_head) size of
one head, q query heads and k KV heads per rank, S_ctx context bucket, S_max cache capacity, n
blocks of a sequence, block_len slots of a block, of which caches have `blocks`. Of layers with
experts: E experts of all ranks, E_held experts of this rank, I_expert and I_shared intermediate
sizes per rank of an expert and of the shared expert. V tokens of the vocabulary per rank.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from jax_tkg.call.layouts import Layout

PER_RANK_LETTERS = ("q", "k", "I", "I_expert", "I_shared", "V")
"""Sizes that tensor parallelism divides by the number of ranks."""

EXPERT_SPLITS = ("intermediate", "expert")
"""How ranks split experts: each rank has a slice of every expert (I_expert is divided by the number
of ranks), or some experts whole (E_held = E / ranks, in the order of the ranks)."""

WEIGHT_KINDS = ("weight", "router", "gain", "bias", "logit", "scale")
"""Kinds that belong to the model's layers and not to a sequence."""

HEAD_KINDS = ("head gain", "head")
"""Kinds that belong to what follows the layers."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """One array argument.

    Attributes:
      name: of the public argument.
      kind: "activation", "weight" (a matrix), "router" (the matrix of a router), "gain" (of a
        normalization), "bias", "logit" (of the softmax), "scale" (of a float8 weight), "cache",
        "cache_scale" (of a float8 cache), "table", "mask", "index", "head" (the matrix after the
        layers) or "head gain". It decides the accepted dtypes.
      layouts: accepted shapes (of one layer), the usual one first.
      description: one sentence for docs/arguments.md.
      per_layer: whether there is one array for each layer.
      per_kind: whether there may be one array for each kind of layers.
      optional: whether None is accepted.
      scaled_by: name of the scale that makes float8 a legal dtype of this weight or cache, or
        None.
      in_blocks: of a cache, its shape where `block_tables` is given; else None.
      of_experts: its shape in a layer with experts, if that differs; else None.
      needs_experts: whether only layers with experts have it.
    """

    name: str
    kind: str
    layouts: tuple[Layout, ...]
    description: str
    per_layer: bool = False
    optional: bool = False
    scaled_by: str | None = None
    per_kind: bool = False
    in_blocks: Layout | None = None
    of_experts: Layout | None = None
    needs_experts: bool = False

    @property
    def layout(self) -> Layout:
        """The usual shape."""
        return self.layouts[0]

    @functools.cached_property
    def batch_axis(self) -> int | None:
        """The axis of B, or None for an array that all sequences share."""
        return self.layout.axis_with("B")

    @functools.cached_property
    def tensor_axis(self) -> int | None:
        """The axis that tensor-parallel ranks split, or None for an array that they share.

        Of an array of a layer with experts whose intermediate size is split.
        """
        return self.layout.axis_with(*PER_RANK_LETTERS)

    def tensor_axis_of_experts(self, split: str) -> int | None:
        """As `tensor_axis`, in a layer with experts.

        Args:
          split: one of `EXPERT_SPLITS`.
        """
        layout = self.of_experts or self.layout
        by_expert = layout.axis_with("E_held") if split == "expert" else None
        return layout.axis_with(*PER_RANK_LETTERS) if by_expert is None else by_expert


def _row(
    name: str,
    kind: str,
    layouts: str,
    description: str,
    per_layer: bool = False,
    optional: bool = False,
    scaled_by: str | None = None,
    per_kind: bool = False,
    in_blocks: str | None = None,
    of_experts: str | None = None,
    needs_experts: bool = False,
) -> Operand:
    return Operand(
        name,
        kind,
        tuple(Layout(text) for text in layouts.split(" or ")),
        description,
        per_layer,
        optional,
        scaled_by,
        per_kind,
        in_blocks=None if in_blocks is None else Layout(in_blocks),
        of_experts=None if of_experts is None else Layout(of_experts),
        needs_experts=needs_experts,
    )


_layer = functools.partial(_row, per_layer=True)
_experts = functools.partial(_layer, optional=True, needs_experts=True)
_for_kinds = functools.partial(_row, per_kind=True)

OPERANDS: tuple[Operand, ...] = (
    _row("X", "activation", "[B, S, H]", "Embedded tokens. Their dtype is the compute dtype."),
    _layer(
        "W_qkvs",
        "weight",
        "[H, (q + 2k)*d]",
        "QKV projection: columns of the query heads, then the key heads, then the value heads.",
    ),
    _layer("W_outs", "weight", "[q*d, H]", "Output projection of attention."),
    _layer(
        "W_gates",
        "weight",
        "[H, I]",
        "Gate projection; with three axes, of each expert that the rank holds.",
        scaled_by="W_gate_scales",
        of_experts="[E_held, H, I_expert]",
    ),
    _layer(
        "W_ups",
        "weight",
        "[H, I]",
        "Up projection, of experts where W_gates is.",
        scaled_by="W_up_scales",
        of_experts="[E_held, H, I_expert]",
    ),
    _layer(
        "W_downs",
        "weight",
        "[I, H]",
        "Down projection, of experts where W_gates is.",
        scaled_by="W_down_scales",
        of_experts="[E_held, I_expert, H]",
    ),
    _layer("W_gamma_qkvs", "gain", "[1, H]", "Gain of the RMSNorm before attention."),
    _layer("W_gamma_mlps", "gain", "[1, H]", "Gain of the RMSNorm before the MLP."),
    _layer(
        "K_caches",
        "cache",
        "[B, k, d, S_max] or [B, d, S_max]",
        "Key caches, transposed. The KV-head axis may be absent if k = 1. With block_tables: "
        "[blocks, k, d, block_len].",
        scaled_by="k_scales",
        in_blocks="[blocks, k, d, block_len]",
    ),
    _layer(
        "V_caches",
        "cache",
        "[B, k, S_max, d] or [B, S_max, d]",
        "Value caches. The KV-head axis may be absent if k = 1. With block_tables: "
        "[blocks, k, block_len, d].",
        scaled_by="v_scales",
        in_blocks="[blocks, k, block_len, d]",
    ),
    _for_kinds("RoPE_cos", "table", "[d/2, B, S]", "Cosines of the new tokens' rotations."),
    _for_kinds("RoPE_sin", "table", "[d/2, B, S]", "Sines of the new tokens' rotations."),
    _for_kinds(
        "mask_cache",
        "mask",
        "[S_ctx, B, q, S]",
        "Non-zero where a query attends a cache slot. None: `context_lengths` says it.",
        optional=True,
    ),
    _for_kinds(
        "mask_active",
        "mask",
        "[S, B, q, S]",
        "Non-zero where a query (last axis) attends a new key (first axis). "
        "None: the last S rows of mask_cache are this mask; with `context_lengths`, it is causal.",
        optional=True,
    ),
    _for_kinds(
        "position_ids",
        "index",
        "[B, 1] or [B, S]",
        "Cache slot of each sequence's first new token, or of each new token. "
        "2**32 - 1 or a negative number skips the write. None: the caches stay as they are.",
        optional=True,
    ),
    _layer(
        "W_gate_scales",
        "scale",
        "[128, I] or [1, I]",
        "Scales of float8 gate columns (equal rows); an entry is None if its weight is not float8.",
        optional=True,
        of_experts="[E_held, 1, I_expert]",
    ),
    _layer(
        "W_up_scales",
        "scale",
        "[128, I] or [1, I]",
        "Scales of float8 up columns, like W_gate_scales.",
        optional=True,
        of_experts="[E_held, 1, I_expert]",
    ),
    _layer(
        "W_down_scales",
        "scale",
        "[128, H] or [1, H]",
        "Scales of float8 down columns, like W_gate_scales.",
        optional=True,
        of_experts="[E_held, 1, H]",
    ),
    _layer(
        "bias_qkvs",
        "bias",
        "[1, (q + 2k)*d]",
        "Added to the QKV product; columns as in W_qkvs.",
        optional=True,
    ),
    _layer(
        "bias_outs",
        "bias",
        "[1, H]",
        "Added once to attention's output, after the all-reduce.",
        optional=True,
    ),
    _layer(
        "W_gamma_qs",
        "gain",
        "[1, d]",
        "Gain of an RMSNorm of each query head, before RoPE.",
        optional=True,
    ),
    _layer(
        "W_gamma_ks",
        "gain",
        "[1, d]",
        "Gain of an RMSNorm of each key head, before RoPE.",
        optional=True,
    ),
    _layer(
        "W_gamma_post_attentions",
        "gain",
        "[1, H]",
        "Gain of an RMSNorm of attention's output, before it is added to the residual.",
        optional=True,
    ),
    _layer(
        "W_gamma_post_mlps",
        "gain",
        "[1, H]",
        "Gain of an RMSNorm of the MLP's output, before it is added to the residual.",
        optional=True,
    ),
    _layer(
        "sinks",
        "logit",
        "[1, q]",
        "One more logit of each query head's softmax, unscaled, with no value behind it.",
        optional=True,
    ),
    _experts("W_routers", "router", "[H, E]", "Router: the experts' logits, in float32."),
    _experts("bias_routers", "bias", "[1, E]", "Added to the router's logits."),
    _experts(
        "bias_selections",
        "bias",
        "[1, E]",
        "Added to the values that experts are chosen by, not to their weights; only of "
        '"sigmoid_topk".',
    ),
    _experts("bias_gates", "bias", "[E_held, I_expert]", "Added to the experts' gate products."),
    _experts("bias_ups", "bias", "[E_held, I_expert]", "Added to the experts' up products."),
    _experts(
        "bias_downs",
        "bias",
        "[E_held, H]",
        "Added to the experts' down products, once for all ranks that share an expert.",
    ),
    _experts("W_shared_gates", "weight", "[H, I_shared]", "Gate projection of the shared expert."),
    _experts("W_shared_ups", "weight", "[H, I_shared]", "Up projection of the shared expert."),
    _experts("W_shared_downs", "weight", "[I_shared, H]", "Its down projection."),
    _for_kinds(
        "context_lengths",
        "index",
        "[B] or [B, S]",
        "In place of mask_cache: each query attends the cache slots below this number.",
        optional=True,
    ),
    _for_kinds(
        "context_starts",
        "index",
        "[B] or [B, S]",
        "First slot attended, with context_lengths. A start above the length wraps: slots below "
        "the length and those from the start on are attended. None: 0.",
        optional=True,
    ),
    _for_kinds(
        "block_tables",
        "index",
        "[B, n]",
        "The blocks of the caches that hold each sequence's slots, in their order; negative: none.",
        optional=True,
    ),
    _layer(
        "k_scales",
        "cache_scale",
        "[1, 1]",
        "Scales of float8 key caches, which hold keys times the scale; an entry is None if its "
        "cache is not float8.",
        optional=True,
    ),
    _layer(
        "v_scales",
        "cache_scale",
        "[1, 1]",
        "Scales of float8 value caches, like k_scales.",
        optional=True,
    ),
    _row(
        "W_gamma_final",
        "head gain",
        "[1, H]",
        "Gain of the RMSNorm after the last layer; given with W_head.",
        optional=True,
    ),
    _row(
        "W_head",
        "head",
        "[H, V]",
        "Head: the normalized hidden states times it are logits, whose largest are results too.",
        optional=True,
    ),
)
"""All rows, in the order of the public arguments."""

BY_NAME = {row.name: row for row in OPERANDS}
"""The rows by name."""


def names(*kinds: str, per_layer: bool | None = None) -> tuple[str, ...]:
    """Names of the operands of these kinds (of all kinds where none is given), in order.

    Args:
      *kinds: values of `Operand.kind`.
      per_layer: restricts to operands that are, or are not, per layer.
    """
    return tuple(row.name for row in _rows(kinds, per_layer))


def _rows(kinds: tuple[str, ...], per_layer: bool | None) -> Iterator[Operand]:
    for row in OPERANDS:
        if (not kinds or row.kind in kinds) and per_layer in (None, row.per_layer):
            yield row
