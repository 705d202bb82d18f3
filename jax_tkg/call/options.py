"""The static options of `transformer_tkg`, one row each: default, check and meaning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jax_tkg.call.integers import check_count
from jax_tkg.call.layer_kinds import check_layer_kinds
from jax_tkg.call.replica_groups import check_axis_name, check_replica_groups

IMPLEMENTATIONS = ("auto", "reference", "cpu", "nki", "simulate", "nkilib")
"""Values of `implementation`."""

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
"""Smallest normal float32. A smaller eps becomes 0, which gives 0 / 0 for tokens of zeros."""

ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "relu2", "swiglu_oai")
"""Values of `activation`. "gelu_tanh" is gelu's approximation by a tanh; relu2(x) = relu(x)**2.
"swiglu_oai", of gate and up, is that of gpt-oss."""

ROUTINGS = ("softmax_topk", "topk_softmax", "sigmoid_topk")
"""Values of `routing`."""

REQUIRED = object()
"""Default of an option that must be given."""


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool | np.bool_) or not is_number:
        raise TypeError(f"{name}: expected a Python number (it is static), got {value!r}")
    if not value >= 0 or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    return float(value)


def _epsilon(name: str, value: Any) -> float:
    number = _number(name, value)
    if number < SMALLEST_NORMAL:
        raise ValueError(
            f"{name}: expected at least {SMALLEST_NORMAL:.3g}, float32's smallest normal number, "
            f"got {value}"
        )
    return number


def _softmax_scale(name: str, value: Any) -> float | None:
    return None if value is None else _epsilon(name, value)


def _softcap(name: str, value: Any) -> float:
    number = _number(name, value)
    return number if number == 0 else _epsilon(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _cores(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected the integer 1 or 2, or None, got {value!r}")
    if value not in (1, 2):
        raise ValueError(f"{name}: expected 1, 2 or None, got {value!r}")
    return int(value)


def _optional_count(name: str, value: Any) -> int | None:
    return None if value is None else check_count(name, value)


def _counts_of_kinds(name: str, value: Any) -> int | tuple[int | None, ...] | None:
    """One count or None, or a tuple of these."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _optional_count(name, value)
    return tuple(_optional_count(f"{name}[{kind}]", entry) for kind, entry in enumerate(value))


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            expected = ", ".join(map(repr, known))
            raise ValueError(f"{name}: expected one of {expected}, got {value!r}")
        return value

    return check


def _quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f'"{value}"' for value in values)


def _axes(name: str, value: Any) -> tuple[str, ...]:
    del name
    return check_axis_name(value)


@dataclasses.dataclass(frozen=True)
class Option:
    """One static argument.

    Attributes:
      name: of the public argument.
      default: its default, or `REQUIRED`.
      check: takes name and value; returns the canonical value or raises TypeError or ValueError.
      description: one sentence for docs/arguments.md.
      arithmetic: whether it changes what is computed. An implementation that does not take such an
        option refuses every value but the default.
    """

    name: str
    default: Any
    check: Callable[[str, Any], Any]
    description: str
    arithmetic: bool = False


OPTIONS: tuple[Option, ...] = (
    Option("num_layers", REQUIRED, check_count, "Layers to execute, L."),
    Option("eps", 1e-6, _epsilon, "Epsilon of the RMSNorms.", arithmetic=True),
    Option(
        "replica_groups",
        None,
        lambda name, value: value,  # Checked together with axis_name.
        "Lists of ranks that sum their partial results, if axis_name is not given. Ranks number "
        "the mesh's devices in row-major order.",
    ),
    Option(
        "sbuf_residual_and_cc",
        False,
        _flag,
        "Keep residual and all-reduce on chip (Neuron). The result is the same up to rounding.",
    ),
    Option(
        "clamp_bound",
        0.0,
        _number,
        "If positive, inputs of float8 products are clipped to +-clamp_bound.",
        arithmetic=True,
    ),
    Option(
        "softmax_scale",
        None,
        _softmax_scale,
        "Factor of the attention scores. None: d**-0.5.",
        arithmetic=True,
    ),
    Option(
        "attention_softcap",
        0.0,
        _softcap,
        "If positive, scores become cap * tanh(scores / cap), before the mask.",
        arithmetic=True,
    ),
    Option(
        "activation",
        "silu",
        _one_of(*ACTIVATIONS),
        f"The MLP's activation: {_quoted(ACTIVATIONS)}.",
        arithmetic=True,
    ),
    Option(
        "activation_limit",
        7.0,
        _epsilon,
        'Bound of gate and up in "swiglu_oai".',
        arithmetic=True,
    ),
    Option(
        "activation_alpha",
        1.702,
        _epsilon,
        'Factor in the sigmoid of "swiglu_oai".',
        arithmetic=True,
    ),
    Option(
        "experts_per_token",
        None,
        _optional_count,
        "Experts that run for a token, of layers with experts.",
        arithmetic=True,
    ),
    Option(
        "routing",
        "softmax_topk",
        _one_of(*ROUTINGS),
        f"How experts are chosen and weighted: {_quoted(ROUTINGS)}.",
        arithmetic=True,
    ),
    Option(
        "normalize_expert_weights",
        False,
        _flag,
        "Divide a token's expert weights by their sum.",
        arithmetic=True,
    ),
    Option(
        "routed_scale",
        1.0,
        _epsilon,
        "Factor of the expert weights, after that division.",
        arithmetic=True,
    ),
    Option(
        "candidates_per_token",
        None,
        _optional_count,
        "With W_head: how many of a token's largest logits are results.",
        arithmetic=True,
    ),
    Option("logit_scale", 1.0, _epsilon, "With W_head: factor of the logits.", arithmetic=True),
    Option(
        "logit_softcap",
        0.0,
        _softcap,
        "With W_head: if positive, logits become cap * tanh(logits / cap), after that factor.",
        arithmetic=True,
    ),
    Option("axis_name", None, _axes, "Axis or axes of the enclosing shard_map to sum over."),
    Option(
        "lnc",
        None,
        _cores,
        "Physical cores per logical Neuron core, 1 or 2. None: NEURON_LOGICAL_NC_CONFIG, else 2.",
    ),
    Option(
        "implementation",
        "auto",
        _one_of(*IMPLEMENTATIONS),
        f"What the call lowers to: {_quoted(IMPLEMENTATIONS)}.",
    ),
    Option(
        "layers_per_launch",
        None,
        _optional_count,
        "Most layers in one launch of the Neuron kernel. None: all.",
    ),
    Option(
        "layer_kinds",
        None,
        check_layer_kinds,
        "The kind of each layer, 0, 1 and so on. Tables, masks and position_ids may then be tuples "
        "with an entry for each kind, and caches of different kinds may differ in S_max. None: all "
        "layers are alike.",
        arithmetic=True,
    ),
    Option(
        "context_bucket",
        None,
        _counts_of_kinds,
        "S_ctx, with `context_lengths`: slots that a call reads, or a tuple with an entry for each "
        "kind. None: S_max.",
        arithmetic=True,
    ),
    Option(
        "context_parallel",
        1,
        check_count,
        "Ranks that share out the context of a KV head: each holds every so-many-th slot.",
        arithmetic=True,
    ),
)
"""All options, in the order of the public arguments."""

OPTION_NAMES = tuple(option.name for option in OPTIONS)


def canonical_options(given: dict[str, Any]) -> dict[str, Any]:
    """Checks the static options and gives each its canonical value.

    Args:
      given: a value for every option, by name.

    Raises:
      TypeError: a value has a wrong type.
      ValueError: a value is out of its range, or two options disagree: `replica_groups` and
        `axis_name`, `context_parallel` and the ranks of a group, or `layer_kinds` and `num_layers`
        or `context_bucket`.
    """
    values = {option.name: option.check(option.name, given[option.name]) for option in OPTIONS}
    values["replica_groups"] = check_replica_groups(values["replica_groups"], values["axis_name"])
    groups, shared = values["replica_groups"], values["context_parallel"]
    ranks = len(groups[0]) if groups else 1
    if ranks % shared:
        raise ValueError(
            f"context_parallel: expected a divisor of the {ranks} ranks that sum their results "
            f"(axis_name, replica_groups), got {shared}"
        )
    kinds, layers = values["layer_kinds"], values["num_layers"]
    if kinds is not None and len(kinds) != layers:
        raise ValueError(
            f"layer_kinds: expected a kind for each of num_layers = {layers} layers, got "
            f"{len(kinds)}: {kinds}"
        )
    bucket = values["context_bucket"]
    buckets = bucket if isinstance(bucket, tuple) else (bucket,)
    if any(slots is not None and slots % shared for slots in buckets):
        raise ValueError(
            f"context_bucket: expected a multiple of context_parallel = {shared}, of which each "
            f"rank has an equal share of the slots, got {bucket}"
        )
    if isinstance(bucket, int) and kinds is not None:
        values["context_bucket"] = (bucket,) * (max(kinds) + 1)
    if isinstance(bucket, tuple):
        if kinds is None:
            raise TypeError(
                "context_bucket: expected an integer or None (a tuple with an entry for each kind "
                f"of layers needs layer_kinds), got {bucket}"
            )
        if len(bucket) != max(kinds) + 1:
            raise ValueError(
                f"context_bucket: expected an integer, or a tuple with an entry for each of the "
                f"{max(kinds) + 1} kinds of layer_kinds, got {bucket}"
            )
    return values
