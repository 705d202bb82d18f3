"""The signature of `transformer_tkg`, made from the tables."""

from __future__ import annotations

import inspect
from typing import Any

from jax_tkg.call.operand_table import OPERANDS
from jax_tkg.call.options import OPTIONS, REQUIRED

WITHOUT_DEFAULT = (
    "X",
    "W_qkvs",
    "W_outs",
    "W_gates",
    "W_ups",
    "W_downs",
    "W_gamma_qkvs",
    "W_gamma_mlps",
    "K_caches",
    "V_caches",
    "RoPE_cos",
    "RoPE_sin",
    "mask_cache",
    "mask_active",
    "position_ids",
    "num_layers",
)
"""AWS's arguments without a default, in its order."""

WITH_DEFAULT = (
    "eps",
    "replica_groups",
    "sbuf_residual_and_cc",
    "clamp_bound",
    "W_gate_scales",
    "W_up_scales",
    "W_down_scales",
)
"""AWS's arguments with a default, in its order. What AWS does not have is keyword-only."""


def _signature() -> inspect.Signature:
    defaults: dict[str, Any] = {row.name: None for row in OPERANDS}
    for option in OPTIONS:
        defaults[option.name] = inspect.Parameter.empty
        if option.default is not REQUIRED:
            defaults[option.name] = option.default
    positional = (*WITHOUT_DEFAULT, *WITH_DEFAULT)
    either, keyword = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    parameters = [inspect.Parameter(name, either) for name in WITHOUT_DEFAULT]
    parameters += [inspect.Parameter(name, either, default=defaults[name]) for name in WITH_DEFAULT]
    parameters += [
        inspect.Parameter(name, keyword, default=default)
        for name, default in defaults.items()
        if name not in positional
    ]
    return inspect.Signature(parameters)


SIGNATURE = _signature()


def bind_arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """A value for every public argument, by name.

    Raises:
      TypeError: an argument is missing, unknown or given twice.
    """
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
