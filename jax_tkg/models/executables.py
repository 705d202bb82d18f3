"""Ahead-of-time compiled versions of a function, so that compiling is seen and counted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax


class Executables:
    """A jitted function with one executable per set of static arguments and array shapes.

    Unlike `jax.jit` itself, it tells how many executables there are and how long they took, so
    that a rate in tokens per second need not include compiling.

    Args:
      function: what `jax.jit` takes. Its first argument (the parameters) must always have the
        same shapes; static arguments are passed by keyword.
      static_argnames: names of the static arguments.
      mesh: of the arrays, or None. A mesh that the caller has set (`jax.set_mesh`) does not count.
      options: further arguments of `jax.jit`.

    Attributes:
      seconds: time spent tracing, lowering and compiling.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: tuple[str, ...],
        mesh: jax.sharding.Mesh | None = None,
        **options: Any,
    ):
        self._mesh = mesh
        self._jitted = jax.jit(function, static_argnames=static_argnames, **options)
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Executables compiled so far."""
        return len(self._compiled)

    def __call__(self, parameters: Any, *arrays: Any, **static: Hashable) -> Any:
        """Runs the executable for these sizes, which is compiled where it is new."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
        key = (tuple(sorted(static.items())), shapes)
        executable = self._compiled.get(key)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            if executable is None:
                started = time.perf_counter()
                executable = self._jitted.lower(parameters, *arrays, **static).compile()
                self._compiled[key] = executable
                self.seconds += time.perf_counter() - started
            return executable(parameters, *arrays)
