"""Compiled forms of one function, counted and timed, and compiled ahead of their first call."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

Compiled = concurrent.futures.Future[jax.stages.Compiled]
"""An executable that is compiled, being compiled, or could not be compiled."""


class Executables:
    """A jitted function with one executable per set of static arguments and array shapes.

    Unlike `jax.jit` itself, it tells how many executables there are and how long callers waited for
    them, so that a rate in tokens per second need not include compiling; and it compiles ahead, in
    threads. It may be used from several threads.

    Args:
      function: the function to give to `jax.jit`. Its first argument (the parameters) must always
        have the same shapes; static arguments are passed by keyword.
      static_argnames: names of the static arguments.
      mesh: of the arrays, or None. A mesh that the caller has set (`jax.set_mesh`) does not count.
      options: further arguments of `jax.jit`.

    Attributes:
      seconds: time for which calls have waited for tracing, lowering and compiling.
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
        self._compiled: dict[Hashable, Compiled] = {}
        # Those that nobody compiles yet: an executor has the work, which it may drop.
        self._unclaimed: set[Compiled] = set()
        self._lock = threading.Lock()
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Executables compiled so far, or to be compiled."""
        with self._lock:
            return sum(not _has_failed(future) for future in self._compiled.values())

    def forget(self) -> None:
        """Drops all executables: the first argument's shapes have changed."""
        with self._lock:
            self._compiled = {}

    def prepare(
        self,
        threads: concurrent.futures.Executor,
        parameters: Any,
        *arrays: Any,
        **static: Hashable,
    ) -> Compiled:
        """Compiles for these sizes in another thread, unless that is done or under way.

        JAX's settings that hold for one thread, such as `jax.default_device`, do not reach there.
        What `threads` have not begun by the time of a call, the call compiles itself.

        Args:
          threads: compiles. Where it cancels the work, so is what is returned.
          parameters: the function's first argument, or its shapes as jax.ShapeDtypeStruct.
          arrays: the others, likewise.
          static: the static arguments.
        """
        future, is_new = self._future(arrays, static)
        if is_new:
            try:
                work = threads.submit(self._compile, future, parameters, arrays, static)
            except BaseException:
                self._cancel(future)
                raise
            work.add_done_callback(lambda done: self._cancel(future) if done.cancelled() else None)
        return future

    def __call__(self, parameters: Any, *arrays: Any, **static: Hashable) -> Any:
        """Runs the executable for these sizes; compiles it first if there is none."""
        future, _ = self._future(arrays, static)
        if not future.done():
            started = time.perf_counter()
            self._compile(future, parameters, arrays, static)
            concurrent.futures.wait([future])
            self.seconds += time.perf_counter() - started
        if future.cancelled():
            # Meanwhile, by its executor.
            return self(parameters, *arrays, **static)
        with self._mesh_set():
            return future.result()(parameters, *arrays)

    def _mesh_set(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _future(
        self, arrays: tuple[Any, ...], static: dict[str, Hashable]
    ) -> tuple[Compiled, bool]:
        """The executable for these sizes, and whether it is new: no executor has it."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
        key = (tuple(sorted(static.items())), shapes)
        with self._lock:
            found = self._compiled.get(key)
            if found is None or _has_failed(found):
                self._compiled[key] = new = Compiled()
                self._unclaimed.add(new)
                return new, True
            return found, False

    def _claim(self, future: Compiled) -> bool:
        """Whether the caller is to compile it: it is not cancelled, and nobody else compiles it."""
        with self._lock:
            if future not in self._unclaimed:
                return False
            self._unclaimed.remove(future)
            return future.set_running_or_notify_cancel()

    def _cancel(self, future: Compiled) -> None:
        """Gives up what nobody compiles yet."""
        if future.cancel():
            self._claim(future)

    def _compile(
        self,
        future: Compiled,
        parameters: Any,
        arrays: tuple[Any, ...],
        static: dict[str, Hashable],
    ) -> None:
        """Compiles, unless another thread does or it is cancelled."""
        if not self._claim(future):
            return
        try:
            with self._mesh_set():
                lowered = self._jitted.lower(parameters, *arrays, **static)
                future.set_result(lowered.compile())
        # Whatever it is, callers in other threads wait for it.
        except BaseException as error:
            future.set_exception(error)


def _has_failed(future: Compiled) -> bool:
    """Whether it is cancelled, or could not be compiled."""
    return future.cancelled() or (future.done() and future.exception() is not None)


def on_mesh(mesh: jax.sharding.Mesh | None, shardings: Any) -> dict[str, Any]:
    """Options of `Executables` so that results have these shardings; none without a mesh."""
    return {} if mesh is None else {"mesh": mesh, "out_shardings": shardings}
