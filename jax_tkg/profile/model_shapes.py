"""Models by name, and what one rank of a tensor-parallel group holds of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jax_tkg import hardware
from jax_tkg.caches import ring_capacity
from jax_tkg.call.arguments import FLOAT8_CACHE_DTYPES, FLOAT8_DTYPES, PARTITIONS
from jax_tkg.call.operand_table import OPERANDS, WEIGHT_KINDS, Operand, names
from jax_tkg.profile.traffic import kind_of
from jax_tkg.weights import HeadSplit, split_heads


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """Layers of a model that attend alike.

    Attributes:
      layers: how many there are.
      window: slots that a query of these layers attends, its own token's included; None: all.
    """

    layers: int
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes and options of a whole model, apart from embedding and head.

    Attributes:
      layers: transformer layers.
      hidden: H.
      intermediate: I of all ranks together; of one expert, in layers with experts.
      query_heads, kv_heads: of all ranks together.
      head_size: d.
      operands: optional operands of the operation that the model has, by name.
      options: static options of the operation that the model sets, as (name, value).
      window: slots that a query of a sliding-window layer attends, or None.
      window_layers: how many of the layers have that window.
      experts: of each layer; 0 for dense layers. Ranks split their intermediate size.
      shared: I of all ranks together of the shared expert; 0 for none.
      vocabulary: columns of the head of all ranks together; 0 if they are not known.
    """

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_size: int
    operands: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    window: int | None = None
    window_layers: int = 0
    experts: int = 0
    shared: int = 0
    vocabulary: int = 0

    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers: those that attend the whole context first."""
        found = (
            LayerKind(self.layers - self.window_layers),
            LayerKind(self.window_layers, self.window),
        )
        return tuple(kind for kind in found if kind.layers)


DIMENSIONS = tuple(
    field.name for field in dataclasses.fields(ModelShape) if field.default is dataclasses.MISSING
)
"""The sizes that every model has, in order."""

_HEAD_NORMS = ("W_gamma_qs", "W_gamma_ks")
_POST_NORMS = ("W_gamma_post_attentions", "W_gamma_post_mlps")
_GPT_OSS = (
    *("bias_qkvs", "bias_outs", "sinks"),
    *("W_routers", "bias_routers", "bias_gates", "bias_ups", "bias_downs"),
)
_GPT_OSS_OPTIONS = (
    *(("activation", "swiglu_oai"), ("experts_per_token", 4), ("routing", "topk_softmax")),
)

VOCABULARIES = {
    **dict.fromkeys(("llama3_70b", "llama3_8b", "llama3_2_1b"), 128256),
    **{"mistral_7b": 32768, "mistral_nemo_12b": 131072, "mixtral_8x7b": 32000},
    "qwen2_5_7b": 152064,
    **dict.fromkeys(("qwen3_8b", "qwen3_32b", "qwen3_30b_a3b"), 151936),
    **{"gemma2_9b": 256000, "gemma3_27b": 262208, "phi4_14b": 100352, "granite3_8b": 49155},
    **dict.fromkeys(("gpt_oss_20b", "gpt_oss_120b"), 201088),
}
"""Columns of the models' heads."""

_MODELS = {
    "llama3_70b": ModelShape(80, 8192, 28672, 64, 8, 128),
    "llama3_8b": ModelShape(32, 4096, 14336, 32, 8, 128),
    "llama3_2_1b": ModelShape(16, 2048, 8192, 32, 8, 64),
    "mistral_7b": ModelShape(32, 4096, 14336, 32, 8, 128),
    "mistral_nemo_12b": ModelShape(40, 5120, 14336, 32, 8, 128),
    "qwen2_5_7b": ModelShape(28, 3584, 18944, 28, 4, 128, ("bias_qkvs",)),
    "qwen3_8b": ModelShape(36, 4096, 12288, 32, 8, 128, _HEAD_NORMS),
    "qwen3_32b": ModelShape(64, 5120, 25600, 64, 8, 128, _HEAD_NORMS),
    "gemma2_9b": ModelShape(
        *(42, 3584, 14336, 16, 8, 256),
        _POST_NORMS,
        (("activation", "gelu_tanh"), ("attention_softcap", 50.0), ("softmax_scale", 256**-0.5)),
        window=4096,
        window_layers=21,
    ),
    "gemma3_27b": ModelShape(
        *(62, 5376, 21504, 32, 16, 128),
        (*_HEAD_NORMS, *_POST_NORMS),
        (("activation", "gelu_tanh"), ("softmax_scale", 168**-0.5)),
        window=1024,
        window_layers=52,
    ),
    "phi4_14b": ModelShape(40, 5120, 17920, 40, 10, 128),
    "granite3_8b": ModelShape(40, 4096, 12800, 32, 8, 128, (), (("softmax_scale", 1 / 128),)),
    "mixtral_8x7b": ModelShape(
        *(32, 4096, 14336, 32, 8, 128),
        ("W_routers",),
        (("experts_per_token", 2), ("normalize_expert_weights", True)),
        experts=8,
    ),
    "qwen3_30b_a3b": ModelShape(
        *(48, 2048, 768, 32, 4, 128),
        (*_HEAD_NORMS, "W_routers"),
        (("experts_per_token", 8), ("normalize_expert_weights", True)),
        experts=128,
    ),
    "gpt_oss_20b": ModelShape(
        *(24, 2880, 2880, 64, 8, 64),
        _GPT_OSS,
        _GPT_OSS_OPTIONS,
        window=128,
        window_layers=12,
        experts=32,
    ),
    "gpt_oss_120b": ModelShape(
        *(36, 2880, 2880, 64, 8, 64),
        _GPT_OSS,
        _GPT_OSS_OPTIONS,
        window=128,
        window_layers=18,
        experts=128,
    ),
}

MODELS = {
    name: dataclasses.replace(model, vocabulary=VOCABULARIES[name])
    for name, model in _MODELS.items()
}
"""From the models' published configurations."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is profiled: one rank's sizes, in letters of `jax_tkg.call.arguments`, and the machine.

    Attributes:
      B, S, H, I, d, q, k: sizes per rank; with experts, I is of one of them.
      S_ctx: slots that the kernel reads, those of the new tokens included; also the caches'
        capacity.
      attended: slots that a query attends, where they are fewer than S_ctx, as in a ring.
      dtype: compute dtype.
      quantized_mlp: float8 dtype of the MLP weights, or None.
      cache_dtype: float8 dtype of the caches, or None.
      tensor_parallel: ranks that sum their results.
      lnc: physical cores per logical core.
      target: "trn2" or "trn3".
      residual_on_chip: all-reduce from SBUF to SBUF; else through HBM.
      looped: the layers are a loop on the device; else each has instructions of its own.
      operands: optional operands of the operation that the model has, by name.
      options: static options of the operation that the model sets, as (name, value).
      lengths: whether `context_lengths` say what is attended; else a mask.
      block_len: slots of a block of caches in blocks, which have lengths; 0 for flat caches.
      experts: of a layer, of each of which the rank holds I features; 0 for a dense layer.
      shared: features that the rank holds of the shared expert; 0 for none.
      V: columns of the rank's head, if the case has one.
      context_parallel: ranks that share out the S_ctx slots of their KV head, evenly.
    """

    B: int
    S: int
    H: int
    I: int  # noqa: E741 - the field's letter for the MLP intermediate size
    d: int
    q: int
    k: int
    S_ctx: int
    dtype: str = "bfloat16"
    quantized_mlp: str | None = None
    tensor_parallel: int = 1
    lnc: int = 2
    target: str = "trn2"
    residual_on_chip: bool = False
    looped: bool = False
    attended: int | None = None
    operands: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    lengths: bool = False
    block_len: int = 0
    experts: int = 0
    shared: int = 0
    cache_dtype: str | None = None
    V: int = 0
    context_parallel: int = 1

    def __post_init__(self) -> None:
        """Checks the options that are names, for the target too, and that the context divides."""
        for name, dtypes in (
            ("quantized_mlp", FLOAT8_DTYPES),
            ("cache_dtype", FLOAT8_CACHE_DTYPES),
        ):
            known, value = [str(dtype) for dtype in dtypes], getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {known}")
            of_target = hardware.target_named(self.target).float8_dtypes
            formats = [dtype for dtype in known if dtype in of_target]
            if value is not None and value not in formats:
                raise ValueError(
                    f"{name}: expected {' or '.join(formats)} on the target {self.target}, "
                    f"got {value}, which needs the target {hardware.TRN3.name}"
                )
        shared = self.context_parallel
        if self.block_len and self.S_ctx % (self.block_len * shared):
            raise ValueError(
                f"block_len={self.block_len}: expected a divisor of the context, {self.S_ctx}"
                + (f", over {shared} ranks" if shared > 1 else "")
            )
        if shared < 1 or self.tensor_parallel % shared or self.S_ctx % shared:
            raise ValueError(
                f"context_parallel={shared}: expected a divisor of the ranks, "
                f"{self.tensor_parallel}, and of the context, {self.S_ctx}"
            )

    @property
    def S_max(self) -> int:
        """Slots of the caches of a rank."""
        return self.S_ctx // self.context_parallel

    def sizes(self) -> dict[str, int]:
        """The letters of the operand table's layouts with their sizes."""
        letters = {letter: getattr(self, letter) for letter in "BSHIdqk"}
        n = self.S_max // self.block_len if self.block_len else 0
        blocks = {"n": n, "blocks": self.B * n, "block_len": self.block_len}
        experts = {"E": self.experts, "E_held": self.experts, "I_expert": self.I}
        experts["I_shared"] = self.shared
        return {
            **letters,
            "S_ctx": self.S_ctx,
            "S_max": self.S_max,
            "V": self.V,
            **blocks,
            **experts,
        }

    def array_shape(self, row: Operand) -> tuple[int, ...]:
        """The shape of an operand, of one layer where it is per layer."""
        layout = row.layout
        if self.block_len and row.in_blocks is not None:
            layout = row.in_blocks
        if self.experts and row.of_experts is not None:
            layout = row.of_experts
        return layout.shape(self.sizes())

    def rows(self) -> tuple[Operand, ...]:
        """The operands that the case has: those that every call has, and the chosen ones."""
        chosen = set(self.operands)
        if self.quantized_mlp is not None:
            chosen.update(names("scale"))
        if self.cache_dtype is not None:
            chosen.update(names("cache_scale"))
        chosen.add("context_lengths" if self.lengths or self.block_len else "mask_cache")
        if self.block_len:
            chosen.add("block_tables")
        return tuple(row for row in OPERANDS if not row.optional or row.name in chosen)

    def dtype_of(self, row: Operand) -> str:
        """The name of an operand's dtype."""
        if row.scaled_by is not None:
            quantized = self.cache_dtype if row.kind == "cache" else self.quantized_mlp
            return quantized or self.dtype
        kinds = dict.fromkeys(("scale", "cache_scale", "logit"), "float32")
        return {**kinds, "mask": "bool", "index": "int32"}.get(row.kind, self.dtype)

    def weight_bytes(self) -> int:
        """Bytes of one layer's weights, gains, biases and scales on one rank, each counted once.

        Of a scale's equal rows one is counted, of experts those that tokens choose.
        """
        total = 0
        for row in self.rows():
            if row.kind in WEIGHT_KINDS:
                shape = self.array_shape(row)
                if self.experts and kind_of(row.name, experts=True) == "experts":
                    shape = (self.experts_read(), *shape[1:])
                elif row.kind == "scale":
                    shape = shape[-1:]
                total += math.prod(shape) * itemsize(self.dtype_of(row))
        return total

    def chosen_experts(self) -> np.ndarray:
        """[B * S, experts_per_token]: the experts of each token.

        Uniformly drawn, always the same: which ones a trained router chooses depends on the text.
        """
        rng = np.random.default_rng(0)
        count = dict(self.options)["experts_per_token"]
        return np.array([rng.permutation(self.experts)[:count] for _ in range(self.B * self.S)])

    def experts_read(self) -> int:
        """How many different experts a layer's tokens choose."""
        return len(np.unique(self.chosen_experts()))

    def cache_bytes(self) -> int:
        """Bytes of one layer's caches that its new tokens attend on one rank, each counted once."""
        slots = -(-((self.attended or self.S_ctx) - self.S) // self.context_parallel)
        return 2 * self.B * self.k * self.d * slots * itemsize(self.cache_dtype or self.dtype)


def itemsize(dtype: str) -> int:
    """Bytes of a number of a dtype that NumPy or ml_dtypes names."""
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize


def rank_sizes(model: ModelShape, tensor_parallel: int) -> dict[str, int]:
    """H, I, d, q and k of one rank.

    Where there are more ranks than KV heads, several ranks hold the same KV head. H, and I of dense
    layers, are rounded up to whole tiles of 128.

    Raises:
      ValueError: heads do not divide among the ranks.
    """
    split = _split(model, tensor_parallel)
    share = -(-model.intermediate // tensor_parallel)
    return {
        "H": _tiles(model.hidden),
        "I": share if model.experts else _tiles(share),
        "d": model.head_size,
        "q": split.q,
        "k": split.k,
    }


def _split(model: ModelShape, tensor_parallel: int) -> HeadSplit:
    name = f"tensor_parallel={tensor_parallel}"
    return split_heads(model.query_heads, model.kv_heads, tensor_parallel, name)


def _tiles(size: int) -> int:
    return -(-size // PARTITIONS) * PARTITIONS


def layer_case(
    model: ModelShape,
    kind: LayerKind,
    *,
    tensor_parallel: int,
    context: int,
    context_parallel: int = 1,
    **others: Any,
) -> Case:
    """One rank's part of a layer of a model.

    A layer with a window has its caches as a ring, where that is smaller than the context.

    Args:
      model: whose layer.
      kind: which of its kinds of layers.
      tensor_parallel: ranks.
      context: cache slots per sequence, new tokens included.
      context_parallel: ranks that share out the context of their KV head: a divisor of those that
        have it in common.
      **others: fields of `Case`.

    Raises:
      ValueError: heads or contexts do not divide among the ranks, or `Case` refuses a field.
    """
    slots, attended = context, None
    if kind.window is not None and kind.window < context:
        slots, attended = min(context, ring_capacity(kind.window)), kind.window
    sizes: dict[str, Any] = rank_sizes(model, tensor_parallel)
    # Ranks that have a KV head in common hold no other: the operation takes k = 1 only.
    copies = _split(model, tensor_parallel).copies
    if context_parallel < 1 or copies % context_parallel:
        raise ValueError(
            f"context_parallel: expected a divisor of the {copies} ranks that have a KV head in "
            f"common, got {context_parallel}"
        )
    return Case(
        S_ctx=slots,
        attended=attended,
        tensor_parallel=tensor_parallel,
        operands=model.operands,
        options=model.options,
        experts=model.experts,
        shared=-(-model.shared // tensor_parallel),
        context_parallel=context_parallel,
        **sizes,
        **others,
    )
