"""The operation for many new tokens: arguments, checks, and the stages that compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.canonical import run_checked
from jax_tkg.call.layer_kinds import check_layer_kinds
from jax_tkg.call.results import (
    TransformerTkgCandidates,
    TransformerTkgOutput,
    named_results,
)
from jax_tkg.call.signature import bind_arguments
from jax_tkg.cpu import transformer as cpu
from jax_tkg.prefill.stages import stages_for
from jax_tkg.reference.transformer import transformer


def transformer_prefill(
    *args: Any,
    windows: Sequence[int | None] | None = None,
    platform: str | None = None,
    **kwargs: Any,
) -> TransformerTkgOutput | TransformerTkgCandidates:
    """`jax_tkg.transformer_tkg` for any number S of new tokens; for use inside `jax.jit`.

    Plain jax.numpy, and not differentiable. Attention goes over the cache in pieces and leaves the
    piece where the longest of `context_lengths` ends, so one compiled program serves every context,
    and time follows the lengths. The tokens of an expert are multiplied together.

    New tokens attend each other causally. Padding after the real ones of a sequence is harmless:
    give it negative `position_ids`, and disregard its hidden states.

    Args:
      args: as `jax_tkg.transformer_tkg` takes them, with S of any size, but `mask_cache` and
        `mask_active` are None: `context_lengths` and `context_starts` say which slots are attended,
        per sequence or per token. Flat caches, rings and `block_tables` alike; where several new
        tokens have the same slot (S more than a ring's), the last one stays.
      windows: W for each kind of layers, how many tokens a query attends, itself included, or None
        for all; limits which new tokens attend each other (`context_starts` does it for the cache).
        None: no kind has a window.
      platform: "cpu": written as XLA:CPU runs it fastest. "neuron": loops have a fixed number of
        turns, over all S_ctx slots. None, or another platform: plain jax.numpy.
      kwargs: as `jax_tkg.transformer_tkg` takes them; `implementation` and the options of kernels
        do not count.

    Returns:
      As `jax_tkg.transformer_tkg`.

    Raises:
      TypeError: as `jax_tkg.transformer_tkg`; or a window is no integer, or `platform` no name.
      ValueError: as `jax_tkg.transformer_tkg`; or a mask is given, or `windows` has not one entry
        for each kind of layers, or a window is not positive.
    """
    arguments = bind_arguments(*args, **kwargs)
    for name in ("mask_cache", "mask_active"):
        given = arguments[name]
        entries = given if isinstance(given, Sequence) else (given,)
        if any(entry is not None for entry in entries):
            raise ValueError(
                f"{name}: expected None (transformer_prefill takes context_lengths, "
                "context_starts and windows), got a mask"
            )
    kinds = max(check_layer_kinds("layer_kinds", arguments["layer_kinds"]) or (0,)) + 1
    platform = _checked_platform(platform)
    stages = stages_for(platform, _checked_windows(windows, kinds))

    def run(operands: Operands, parameters: Parameters) -> tuple[Any, ...]:
        if platform == "cpu":
            return cpu.transformer(operands, parameters, stages)
        return transformer(operands, parameters, stages)

    return named_results(run_checked(run, arguments, max_new_tokens=None))


def _checked_windows(windows: Any, kinds: int) -> tuple[int | None, ...]:
    """A window or None for each kind."""
    if windows is None:
        return (None,) * kinds
    if isinstance(windows, str) or not isinstance(windows, Sequence):
        raise TypeError(f"windows: expected a tuple of integers and None, got {windows!r}")
    if len(windows) != kinds:
        raise ValueError(
            f"windows: expected an entry for each kind of layers, {kinds}, got {len(windows)}"
        )
    checked: list[int | None] = []
    for kind, window in enumerate(windows):
        if window is None:
            checked.append(None)
            continue
        if isinstance(window, bool | np.bool_) or not isinstance(window, int | np.integer):
            raise TypeError(f"windows[{kind}]: expected an integer or None, got {window!r}")
        if window < 1:
            raise ValueError(f"windows[{kind}]: expected at least 1 or None, got {window}")
        checked.append(int(window))
    return tuple(checked)


def _checked_platform(platform: Any) -> str | None:
    """The name in lower case, or None."""
    if platform is not None and not isinstance(platform, str):
        raise TypeError(f"platform: expected a platform's name or None, got {platform!r}")
    return None if platform is None else platform.lower()
