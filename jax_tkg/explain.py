"""What a call lowers to on this machine, and why."""

from __future__ import annotations

from typing import Any

import jax

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.canonical import run_checked
from jax_tkg.call.signature import bind_arguments
from jax_tkg.lowering.choice import Choice, choose


def explain(*args: Any, platform: str | None = None, **kwargs: Any) -> Choice:
    """Says which implementation a call of `transformer_tkg` lowers to, and why.

    Args:
      *args: the call's arguments; arrays may be `jax.ShapeDtypeStruct`s inside `jax.eval_shape`.
      platform: what is lowered for; None: the default backend's platform.
      **kwargs: likewise.

    Returns:
      The implementation's name and the reason, in one sentence.

    Raises:
      TypeError: as `transformer_tkg`.
      ValueError: as `transformer_tkg`, or the implementation asked for cannot run.
    """
    chosen: list[Choice] = []

    def run(operands: Operands, parameters: Parameters) -> tuple[Any, Any, Any]:
        platforms = (platform or jax.default_backend(),)
        chosen.append(choose(operands, parameters, platforms))
        return operands.X, operands.K_caches, operands.V_caches

    run_checked(run, bind_arguments(*args, **kwargs))
    return chosen[0]
