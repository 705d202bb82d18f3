"""Running small kernels: one instruction between loads and a store, or a body that must fail."""

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl


def run(body: Callable[..., Any], *arrays: Any, lnc: int = 1, target: str = "trn2", **options: Any):
    """The result of a kernel on one rank."""
    return simulator.run(
        body, [arrays], lnc=lnc, target=target, options=simulator.Options(**options)
    )


HANG_SECONDS = 60
"""Patience with a run that ends within a second: after it, the run hangs."""


def must_end(
    function: Callable[..., Any], *arguments: Any, patience: float = HANG_SECONDS, **options: Any
) -> Any:
    """The function's result, for runs that wait for ever if deadlocks go unnoticed.

    Raises:
      AssertionError: it hangs; the message holds the stacks of all threads.
      BaseException: whatever the function raises.
    """
    results: list[Any] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*arguments, **options))
        except BaseException as error:
            failures.append(error)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(patience)
    if caller.is_alive():
        frames = sys._current_frames().values()
        stacks = "\n".join("".join(traceback.format_stack(frame)) for frame in frames)
        raise AssertionError(f"the run hangs; the stacks of all threads:\n{stacks}")
    if failures:
        raise failures[0]
    return results[0]


def on_chip(
    instruction: Callable[..., Any],
    inputs: Sequence[np.ndarray],
    shape: tuple[int, ...],
    dtype: str = "float32",
    buffer: Any = nl.sbuf,
    target: str = "trn2",
    fill: float | None = None,
) -> np.ndarray:
    """What ``instruction(dst, *tiles)`` writes to `dst`, the inputs being loaded into SBUF."""

    def body(*tensors):
        tiles = [nl.load(tensor) for tensor in tensors]
        dst = nl.ndarray(shape, dtype=dtype, buffer=buffer)
        if fill is not None:
            nisa.memset(dst, fill)
        instruction(dst, *tiles)
        source = dst
        if buffer == nl.psum:
            source = nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)
            nisa.tensor_copy(source, dst)
        out = nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(out, source)
        return out

    return run(body, *inputs, target=target).outputs[0]


def tile(
    *shape: int, dtype: str = "float32", buffer: Any = nl.sbuf, value: float = 1, address=None
) -> Any:
    """An initialized on-chip tensor, inside a kernel."""
    tensor = nl.ndarray(shape, dtype=dtype, buffer=buffer, address=address)
    nisa.memset(tensor, value)
    return tensor


def psum(*shape: int, dtype: str = "float32", value: float = 1, address=None) -> Any:
    """An initialized PSUM tensor."""
    return tile(*shape, dtype=dtype, buffer=nl.psum, value=value, address=address)


def empty(*shape: int, dtype: str = "float32", buffer: Any = nl.psum, address=None) -> Any:
    """A PSUM tensor that nothing has written."""
    return nl.ndarray(shape, dtype=dtype, buffer=buffer, address=address)


def hbm(*shape: int, dtype: str = "float32") -> Any:
    """A tensor in private HBM that nothing has written."""
    return nl.ndarray(shape, dtype=dtype, buffer=nl.hbm)


class Rules:
    """A mixin with one test per documented limit.

    Subclasses are parameterized over (body, message, target).
    """

    def check_rule(self, body: Callable[[], Any], message: str, target: str = "trn2") -> None:
        with self.assertRaisesRegex(simulator.NkiValidationError, message):  # type: ignore[attr-defined]
            run(lambda: body() and None, target=target)
