"""Calling a host function on NumPy arrays from inside a program compiled for CPUs.

`jax.pure_callback` hands its function JAX arrays, and up to JAX 0.10 reading one takes a thread of
XLA's pool. Where each thread of the pool is in such a function, which one CPU or one more rank than
threads is enough for, the program never returns (jax#24255). Here the function gets the NumPy
arrays that XLA passes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

Like = int | tuple[int, tuple[int, ...], str]
"""What a result is like: the argument of this position, or it in another shape and dtype."""

HostFunction = Callable[..., Sequence[np.ndarray]]
"""Takes NumPy arrays, which it must not change, and returns NumPy arrays."""

host_call_p = Primitive("host_call")
host_call_p.multiple_results = True


def host_call(
    function: HostFunction, arguments: Sequence[jax.Array], like: Sequence[Like]
) -> list[jax.Array]:
    """Calls `function` on the arguments when the program runs.

    Under `shard_map` each device calls it on its own part; in a program that the compiler
    partitions, each device calls it on the whole arrays. It may be called from any thread and from
    several at once.

    Args:
      function: the host function, hashable.
      arguments: what it is called on.
      like: per result, the position of the argument whose shape and dtype it has, or the position,
        a shape and a dtype.
    """
    return host_call_p.bind(*arguments, function=function, like=tuple(like))


@host_call_p.def_abstract_eval
def _abstract_evaluate(*avals: Any, function: HostFunction, like: tuple[Like, ...]) -> list[Any]:
    del function

    def result(of: Like) -> Any:
        if isinstance(of, int):
            return avals[of]
        position, shape, dtype = of
        return avals[position].update(shape=shape, dtype=jnp.dtype(dtype))

    return [result(of) for of in like]


def _lower(ctx: Any, *values: Any, function: HostFunction, like: tuple[Like, ...]) -> Any:
    del like
    results, _, _ = mlir.emit_python_callback(
        ctx,
        functools.partial(_run, function),
        None,
        list(values),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=False,
        returns_token=False,
    )
    return results


# A module names its callbacks by number, so the lowered call of one module fits no other.
mlir.register_lowering(host_call_p, _lower, cacheable=False)


def _run(function: HostFunction, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    try:
        return tuple(function(*arrays))
    except BaseException as error:
        with _lock:
            for failures in _listening:
                failures.append(error)
        raise


_lock = threading.Lock()
_listening: list[list[BaseException]] = []


@contextlib.contextmanager
def own_exceptions() -> Iterator[None]:
    """Lets a host function's exception out of a JAX program as it was raised.

    JAX gives the exception's type and message as text at the end of a `JaxRuntimeError`, and no
    more. In this context, in which results must also be waited for, the exception itself is raised:
    `KeyboardInterrupt` and `SystemExit` among others.
    """
    failures: list[BaseException] = []
    with _lock:
        _listening.append(failures)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        for failure in failures:
            if f"{type(failure).__name__}: {failure}" in text:
                raise failure from None
        raise
    finally:
        with _lock:
            _listening[:] = [entry for entry in _listening if entry is not failures]
