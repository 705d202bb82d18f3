"""The custom call on a CPU: a callback that gives it to the simulator, for tests to execute.

XLA tells such a callback the config only in another version of the custom call's interface, and
not on which device it runs. While it is served, JAX therefore gets that version, and the device's
number as one operand more.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import json
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from nki.compiler import program

CALL_VERSION = 3
"""API_VERSION_STATUS_RETURNING_UNIFIED, which hands the config to the callback."""

PATIENCE_SECONDS = 120.0

_served = contextvars.ContextVar("nki_stand_in_served", default=False)
_failures: list[BaseException] = []


def is_served() -> bool:
    """Whether custom calls are made for `served`."""
    return _served.get()


@contextlib.contextmanager
def served(target: str) -> Iterator[None]:
    """Programs that are lowered in here can be executed in here, on CPU devices.

    Raises:
      BaseException: the first one that a kernel raised.
    """
    _register(target)
    _failures.clear()
    token = _served.set(True)
    try:
        yield
    finally:
        _served.reset(token)
    if _failures:
        raise _failures[0]


@functools.cache
def _register(target: str) -> None:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    address = ctypes.cast(_callback, ctypes.c_void_p)
    capsule = make(address, b"xla._CUSTOM_CALL_TARGET", None)
    jax.ffi.register_ffi_target(target, capsule, platform="cpu", api_version=0)


def _serve(results: int, operands: Any, opaque: int, length: int, status: int) -> None:
    del status  # A failure is raised where the serving ends.
    try:
        config = json.loads(base64.b64decode(ctypes.string_at(opaque, length)))
        compiled = program.load(config["klir_binary"]["binary"])
        count = len(compiled.inputs)
        arrays = [_view(operands[index], spec).copy() for index, spec in enumerate(compiled.inputs)]
        rank = int(_view(operands[count], program.Spec("rank", (), np.int32)))
        outputs = _board.run(compiled, rank, arrays)
        several = len(compiled.outputs) > 1
        places = ctypes.cast(results, ctypes.POINTER(ctypes.c_void_p)) if several else [results]
        for index, spec in enumerate(compiled.outputs):
            _view(places[index], spec)[...] = outputs[index]
    except BaseException as error:
        _failures.append(error)


_callback = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
)(_serve)


def _view(address: int | None, spec: program.Spec) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    size = dtype.itemsize * int(np.prod(spec.shape, dtype=np.int64))
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address or 0))
    return raw.view(dtype).reshape(spec.shape)


@dataclasses.dataclass
class _Meeting:
    arrays: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    outputs: list[Any] | None = None
    done: bool = False


class _Board:
    """Where the ranks of a kernel with collectives meet; the last one runs it for all."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: dict[str, _Meeting] = {}

    def run(self, compiled: program.Program, rank: int, arrays: list[np.ndarray]) -> Any:
        if not compiled.has_collectives:
            return _as_tuple(compiled.run([arrays])[0])
        with self._condition:
            meeting = self._waiting.setdefault(compiled.path, _Meeting())
            meeting.arrays[rank] = arrays
            if len(meeting.arrays) == compiled.ranks:
                # The next turn of a loop begins a meeting of its own.
                del self._waiting[compiled.path]
                try:
                    meeting.outputs = compiled.run(
                        [meeting.arrays[index] for index in range(compiled.ranks)]
                    )
                finally:
                    meeting.done = True
                    self._condition.notify_all()
            elif not self._condition.wait_for(lambda: meeting.done, PATIENCE_SECONDS):
                raise TimeoutError(f"of {compiled.ranks} ranks only {sorted(meeting.arrays)} came")
        if meeting.outputs is None:
            raise RuntimeError("another rank's launch of the kernel failed")
        return _as_tuple(meeting.outputs[rank])


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


_board = _Board()
