"""Sizes, constants and options of a model, whatever its family, with the range of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jax_tkg.limits import MAX_HEAD_SIZE
from jax_tkg.models.errors import ModelError
from jax_tkg.models.rope_scaling import Rope
from jax_tkg.models.typed_keys import Range, shown

CONTEXT_LENGTH = Range(1, 1 << 24)
"""Positions are float32 in the RoPE tables, which hold integers exactly up to here."""

ROPE_FACTOR = Range(1e-3, 1e6)
"""Range of a divisor that scales all RoPE frequencies."""

ROPE_THETA = Range(1.0, 1e15)
"""Range of the base of the frequencies: below 1, later pairs would turn faster, without bound."""

ROPE_FACTORS = Range(1e-3, 1e38)
"""Range of the divisors of single RoPE frequencies; a huge one stops that pair from rotating."""

ROPE_CONCENTRATION = Range(1e-3, 1e3)
"""Range of a factor of cosines and sines."""

ROPE_FREQUENCY = Range(0.0, 1e3)
"""Range of a frequency: theta ** 0 over the smallest `ROPE_FACTOR` at most."""

MULTIPLIER = Range(1e-6, 1e6)
"""Range of a factor of embeddings, residuals, scores or logits, and of a soft cap."""

LIMITS: Mapping[str, Range] = {
    "num_layers": Range(1, 1 << 12),
    "hidden_size": Range(1, 1 << 20),
    "intermediate_size": Range(1, 1 << 24),
    "num_heads": Range(1, 1 << 16),
    "num_kv_heads": Range(1, 1 << 16),
    "head_size": Range(2, MAX_HEAD_SIZE),
    "vocabulary_size": Range(1, 1 << 24),
    "context_length": CONTEXT_LENGTH,
    # A float32 below 1e-38 is zero on most devices, and gives NaN for features that are all zero.
    "rms_norm_eps": Range(1e-15, 1.0),
}
"""The range of each number in `ModelConfig`, beyond which a file is damaged or hostile."""


EXPERT_COUNT = Range(1, 1 << 12)
"""Range of the number of experts of a layer, and of those that run for a token."""

SHARED_SIZE = Range(0, LIMITS["intermediate_size"].maximum)
"""Range of the features inside a shared expert."""

_OPERANDS = {
    "sinks": ("sinks",),
    "projection_bias": ("bias_qkvs",),
    "output_bias": ("bias_outs",),
    "head_norms": ("W_gamma_qs", "W_gamma_ks"),
    "post_norms": ("W_gamma_post_attentions", "W_gamma_post_mlps"),
}
"""The arguments of `transformer_tkg` that a flag of `ModelConfig` stands for."""

_EXPERT_BIASES = ("bias_routers", "bias_gates", "bias_ups", "bias_downs")
"""Those that `Experts.biases` stands for."""

_SHARED_EXPERT = ("W_shared_gates", "W_shared_ups", "W_shared_downs")
"""Those that `Experts.shared_size` stands for."""


class ConfigError(ModelError):
    """One of `ModelConfig`'s fields does not fit; loaders put their key in its place.

    Attributes:
      field: the field's name.
      reason: what was expected and what came.
    """

    def __init__(self, field: str, reason: str):
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What differs between the layers of one model.

    Attributes:
      rope: how queries and keys are turned.
      window: a token attends this many tokens at most, itself among them; None: all.
    """

    rope: Rope
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Experts:
    """The experts of each layer; see `transformer_tkg` for what they compute.

    Attributes:
      count: experts of a layer.
      per_token: how many of them run for a token, at most `count`.
      intermediate_size: features inside one expert.
      routing: how they are chosen and weighted.
      normalize_weights: whether a token's weights are divided by their sum.
      biases: whether the router, and gate, up and down of each expert, have biases.
      shared_size: features inside the shared expert, which runs for every token; 0 for none.
    """

    count: int
    per_token: int
    intermediate_size: int
    routing: str = "softmax_topk"
    normalize_weights: bool = False
    biases: bool = False
    shared_size: int = 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a model as its checkpoint states them, before any padding.

    Attributes:
      num_layers: transformer layers.
      hidden_size: features of a hidden state.
      intermediate_size: features inside the MLP.
      num_heads: query heads.
      num_kv_heads: key/value heads, a divisor of `num_heads`.
      head_size: features of one head, even and at most `MAX_HEAD_SIZE`.
      vocabulary_size: tokens.
      context_length: longest sequence that the model was trained for, in tokens.
      rms_norm_eps: epsilon of every RMSNorm.
      layers: the kind of each layer.
      activation: of the MLP's gate; `transformer_tkg` lists them.
      softmax_scale: factor of the attention scores; None: head_size**-0.5.
      attention_softcap: soft cap of the scores; 0 for none.
      projection_bias: whether queries, keys and values have biases.
      output_bias: whether attention's output has one.
      sinks: whether the softmax of each query head has one more logit.
      head_norms: whether an RMSNorm of each query and key head precedes RoPE.
      post_norms: whether an RMSNorm of each block's output precedes the residual's addition.
      embedding_scale: factor of the embeddings.
      residual_scale: factor of each block's output before it is added to the residual.
      logit_scale: factor of the logits.
      logit_softcap: logits become cap * tanh(logits / cap); 0 for none.
      experts: those of each layer that has some; None: all layers are dense.
      dense_layers: with `experts`, the layers that have none, in ascending order.

    Raises:
      ConfigError: a value is out of its range (`LIMITS`); the message names it.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary_size: int
    context_length: int
    rms_norm_eps: float
    layers: tuple[LayerKind, ...]
    activation: str = "silu"
    softmax_scale: float | None = None
    attention_softcap: float = 0.0
    projection_bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    head_norms: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    experts: Experts | None = None
    dense_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks the values, which come from a file."""
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            is_size = isinstance(limits.minimum, int)
            if type(value) not in ((int,) if is_size else (int, float)) or value not in limits:
                kind = "an integer" if is_size else "a number"
                raise ConfigError(name, f"expected {kind} from {limits}, got {shown(value)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "num_kv_heads",
                f"expected a divisor of the {self.num_heads} query heads, got {self.num_kv_heads}",
            )
        if self.head_size % 2:
            raise ConfigError("head_size", f"expected an even number, got {self.head_size}")
        if len(self.layers) != self.num_layers:
            raise ConfigError(
                "layers", f"expected a kind for each of {self.num_layers}, got {len(self.layers)}"
            )
        for layer in self.kinds:
            self._check_rope(layer.rope)

    def _check_rope(self, rope: Rope) -> None:
        pairs = self.head_size // 2
        for frequencies in (rope.frequencies, rope.long_frequencies):
            if len(frequencies) not in (0, self.rotary_size // 2):
                raise ConfigError(
                    "layers",
                    f"expected as many RoPE frequencies in each layer that turns, at most {pairs}, "
                    f"got {len(frequencies)}",
                )
            for frequency in frequencies:
                if frequency not in ROPE_FREQUENCY:
                    raise ConfigError(
                        "layers",
                        f"expected RoPE frequencies from {ROPE_FREQUENCY}, got {frequency!r}",
                    )

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The distinct kinds of layers, in the order in which they first occur."""
        return tuple(dict.fromkeys(self.layers))

    @property
    def layer_kinds(self) -> tuple[int, ...]:
        """The index in `kinds` of each layer's kind."""
        kinds = self.kinds
        return tuple(kinds.index(kind) for kind in self.layers)

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of a layer; None where it is dense."""
        return None if layer in self.dense_layers else self.experts

    @property
    def optional_operands(self) -> tuple[str, ...]:
        """The optional per-layer arguments of `transformer_tkg` that the model has."""
        return self.operands_of(self.experts)

    def operands_of(self, experts: Experts | None) -> tuple[str, ...]:
        """Those that a layer with these experts, or a dense one, has."""
        found = [name for flag, names in _OPERANDS.items() if getattr(self, flag) for name in names]
        if experts is not None:
            found += ["W_routers"]
            found += _EXPERT_BIASES if experts.biases else ()
            found += _SHARED_EXPERT if experts.shared_size else ()
        return tuple(found)

    @property
    def rotary_size(self) -> int:
        """Features of a head that RoPE turns in the layers that have it: the first ones."""
        return min(self.head_size, 2 * max(len(kind.rope.frequencies) for kind in self.layers))
