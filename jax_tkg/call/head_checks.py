"""Checks of the head: its arrays and options come together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax_tkg.call.options import OPTIONS

HEAD_OPTIONS = ("candidates_per_token", "logit_scale", "logit_softcap")
"""Options that say something of logits."""

_DEFAULTS = {option.name: option.default for option in OPTIONS}


def check_head(arrays: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Checks that a call has a head with all that belongs to it, or nothing of it.

    Args:
      arrays: the public array arguments by name, whose shapes are right.
      options: all canonical options by name.

    Raises:
      TypeError: `W_gamma_final` or `candidates_per_token` is missing beside `W_head`.
      ValueError: one of the others is given without `W_head`, or there are more candidates than
        the rank's part of the vocabulary has tokens.
    """
    gain, head = arrays["W_gamma_final"], arrays["W_head"]
    if head is None:
        if gain is not None:
            raise ValueError("W_gamma_final: expected None without W_head, got an array")
        for name in HEAD_OPTIONS:
            if options[name] != _DEFAULTS[name]:
                raise ValueError(
                    f"{name}: expected {_DEFAULTS[name]!r} without W_head, got {options[name]!r}"
                )
        return
    if gain is None:
        raise TypeError("W_gamma_final: expected an array [1, H] beside W_head, got None")
    count, V = options["candidates_per_token"], head.shape[1]
    if count is None:
        raise TypeError(
            f"candidates_per_token: expected an integer in 1..V = {V} (W_head), got None"
        )
    if count > V:
        raise ValueError(
            f"candidates_per_token: expected an integer in 1..V = {V} (W_head), got {count}"
        )
