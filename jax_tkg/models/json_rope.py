"""RoPE as a `config.json` describes it."""

from __future__ import annotations

from collections.abc import Mapping

from jax_tkg.models import rope_scaling
from jax_tkg.models.config import (
    CONTEXT_LENGTH,
    ROPE_CONCENTRATION,
    ROPE_FACTOR,
    ROPE_FACTORS,
    ROPE_THETA,
)
from jax_tkg.models.rope_scaling import Rope
from jax_tkg.models.typed_keys import Range, TypedKeys
from jax_tkg.rope import Llama3Scaling

ORIGINAL_LENGTH = "original_max_position_embeddings"
_LENGTH = "max_position_embeddings"
_FRACTION = "partial_rotary_factor"
_ALSO = frozenset({"rope_theta", "rope_type", "type", _FRACTION})
_NEUTRAL = {"attention_factor": 1.0, "finetuned": (True, False)}
_KEYS: Mapping[str, frozenset[str]] = {
    "default": frozenset({ORIGINAL_LENGTH}),
    "linear": frozenset({"factor", ORIGINAL_LENGTH}),
    # Within the context length this is no scaling, and a longer context is refused anyway.
    "dynamic": frozenset({"factor", ORIGINAL_LENGTH}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL_LENGTH}),
    "yarn": frozenset(
        {
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            ORIGINAL_LENGTH,
        }
    ),
    "longrope": frozenset(
        {"factor", "attention_factor", "short_factor", "long_factor", ORIGINAL_LENGTH}
    ),
}
"""The kinds of RoPE that there are, and the keys that each has besides the common ones."""

_WEIGHT = Range(0.0, 1e3)
_PART = Range(0.0, 1.0)
_TURNS = Range(1e-3, 1e6)


def read_rope(
    keys: TypedKeys,
    head_size: int,
    theta: float = 10000.0,
    fraction: float | None = None,
    aliases: Mapping[str, str] | None = None,
    original_length: int | None = None,
) -> Rope:
    """RoPE as `rope_parameters` (transformers 5), `rope_scaling` (before), or neither says.

    Args:
      keys: of `config.json`.
      head_size: d.
      theta: the base, if the file does not say it.
      fraction: the share of a head's features that turn, if the file does not say it; None: all
        turn, and the file may say nothing else.
      aliases: further values of `rope_type`, and what they mean.
      original_length: context length of the pre-training, if the file does not say it; None: the
        context length.

    Raises:
      ModelError: a value is not as expected, or both keys say something, and not the same.
    """
    theta = keys.number("rope_theta", ROPE_THETA, default=theta)
    if fraction is not None:
        fraction = keys.number(_FRACTION, _PART, default=fraction)
    reader = _Reader(keys, head_size, theta, fraction, aliases or {}, original_length)
    described = [
        reader.described(name)
        for name in ("rope_parameters", "rope_scaling")
        if list(keys.object(name))
    ]
    if len(described) == 2 and described[0] != described[1]:
        raise keys.error("rope_scaling", "the same as rope_parameters, which is there too")
    return described[0] if described else reader.read(TypedKeys(keys.file, {}), "")


def read_rope_of(keys: TypedKeys, rope: TypedKeys, name: str, head_size: int, theta: float) -> Rope:
    """RoPE as one of a file's several objects describes it.

    Args:
      keys: of `config.json`.
      rope: of the object.
      name: of the object, for messages.
      head_size: d.
      theta: the base, if the object does not say it.
    """
    return _Reader(keys, head_size, theta, None, {}, None).read(rope, name)


class _Reader:
    """Reads objects that describe RoPE; holds the defaults of what they leave out."""

    def __init__(
        self,
        keys: TypedKeys,
        head_size: int,
        theta: float,
        fraction: float | None,
        aliases: Mapping[str, str],
        original_length: int | None,
    ):
        self._keys = keys
        self._head_size = head_size
        self._theta = theta
        self._fraction = fraction
        self._aliases = aliases
        self._original_length = original_length

    def described(self, name: str) -> Rope:
        """RoPE as the object under a key of the file describes it."""
        keys, rope = self._keys, self._keys.object(name)
        for key, limits in (("rope_theta", ROPE_THETA), (_FRACTION, _PART)):
            if key in keys and key in rope and rope.number(key, limits) != keys.raw(key):
                raise keys.error(key, f"{rope.raw(key)!r}, as in {name}")
        return self.read(rope, name)

    def read(self, rope: TypedKeys, name: str) -> Rope:
        theta = rope.number("rope_theta", ROPE_THETA, default=self._theta)
        size = self._head_size
        if self._fraction is None:
            rope.check_neutral(_FRACTION, 1.0)
        else:
            size = int(size * rope.number(_FRACTION, _PART, default=self._fraction))
        if size % 2:
            raise rope.error(_FRACTION, f"an even part of the {self._head_size} features of a head")
        kinds = (*_KEYS, *self._aliases)
        kind = rope.string("rope_type", kinds, default=rope.string("type", kinds, "default"))
        if rope.string("type", kinds, default=kind) != kind:
            raise rope.error("type", f"{kind!r}, as in rope_type")
        kind = self._aliases.get(kind, kind)
        neutral = _NEUTRAL | ({"factor": 1.0} if kind == "default" else {})
        for key in rope:
            if key in _KEYS[kind] or key in _ALSO:
                continue
            if key not in neutral:
                raise rope.error(key, f"no such key with rope_type {kind!r}")
            rope.check_neutral(key, neutral[key])
        if kind == "linear":
            return rope_scaling.plain(size, theta, rope.number("factor", ROPE_FACTOR))
        if kind == "llama3":
            return rope_scaling.llama3(size, theta, self._llama3(rope))
        if kind == "yarn":
            return self._yarn(rope, size, theta)
        if kind == "longrope":
            return self._longrope(rope, size, theta)
        return rope_scaling.plain(size, theta)

    def _length(self, rope: TypedKeys, name: str) -> int:
        """Context length of the pre-training: of the object, of the file, or the context length."""
        keys = self._keys
        default = self._original_length or keys.integer(_LENGTH, CONTEXT_LENGTH)
        outer = keys.integer(ORIGINAL_LENGTH, CONTEXT_LENGTH, default=default)
        length = rope.integer(ORIGINAL_LENGTH, CONTEXT_LENGTH, default=outer)
        if ORIGINAL_LENGTH in keys and outer != length:
            raise keys.error(
                ORIGINAL_LENGTH, f"{length}, as with the other values of {name} scaling"
            )
        return length

    def _llama3(self, rope: TypedKeys) -> Llama3Scaling:
        low, high = (
            rope.number(key, ROPE_FACTOR) for key in ("low_freq_factor", "high_freq_factor")
        )
        if not low < high:
            raise rope.error("low_freq_factor", f"a number below high_freq_factor, {high!r}")
        return Llama3Scaling(
            factor=rope.number("factor", ROPE_FACTOR),
            low_frequency_factor=low,
            high_frequency_factor=high,
            original_context_length=self._length(rope, "llama3"),
        )

    def _factor(self, rope: TypedKeys, original_length: int) -> float:
        stretched = self._keys.integer(_LENGTH, CONTEXT_LENGTH) / original_length
        return rope.number("factor", ROPE_FACTOR, default=stretched)

    def _yarn(self, rope: TypedKeys, size: int, theta: float) -> Rope:
        length = self._length(rope, "yarn")
        factor = self._factor(rope, length)
        concentration = None
        if "attention_factor" in rope:
            concentration = rope.number("attention_factor", ROPE_CONCENTRATION)
        elif rope.number("mscale", _WEIGHT, 0.0) and rope.number("mscale_all_dim", _WEIGHT, 0.0):
            weights = (rope.number(key, _WEIGHT) for key in ("mscale", "mscale_all_dim"))
            above, below = (rope_scaling.yarn_concentration(factor, weight) for weight in weights)
            concentration = above / below
        if not size or theta == 1:
            raise rope.error(
                "rope_type", "another type where no pair turns more slowly than others"
            )
        return rope_scaling.yarn(
            size,
            theta,
            factor=factor,
            original_length=length,
            # transformers reads 0 as absent.
            beta_fast=32.0 if rope.is_neutral("beta_fast", 0) else rope.number("beta_fast", _TURNS),
            beta_slow=1.0 if rope.is_neutral("beta_slow", 0) else rope.number("beta_slow", _TURNS),
            truncate=rope.boolean("truncate", True),
            concentration=concentration,
        )

    def _longrope(self, rope: TypedKeys, size: int, theta: float) -> Rope:
        length = self._length(rope, "longrope")
        if length < 2:
            raise rope.error(ORIGINAL_LENGTH, "more than one token with rope_type 'longrope'")
        concentration = rope.number(
            "attention_factor",
            ROPE_CONCENTRATION,
            rope_scaling.longrope_concentration(self._factor(rope, length), length),
        )
        short, long = (
            rope.numbers(key, ROPE_FACTORS, size // 2) for key in ("short_factor", "long_factor")
        )
        return rope_scaling.longrope(
            size,
            theta,
            short_factors=short,
            long_factors=long,
            original_length=length,
            concentration=concentration,
        )
