"""Runs kernels: launches them on all cores and ranks, and converts arguments and results."""

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_tkg.hardware import target_named
from jax_tkg.simulator import errors
from jax_tkg.simulator.machine import capacity
from jax_tkg.simulator.machine.blas_threads import one_blas_thread
from jax_tkg.simulator.machine.device_loops import check_equal_turns
from jax_tkg.simulator.machine.machine import (
    Core,
    Finding,
    Machine,
    Options,
    running_core,
    set_current_core,
)
from jax_tkg.simulator.machine.record import Record
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.storage import MemoryRegion
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described
from jax_tkg.simulator.messages import explain
from jax_tkg.simulator.ordering import core_barriers, races

PRECISION_VARIABLE = "NKI_PRECISE_FP"
"""Environment variable of AWS's simulator: 0 stores low-precision dtypes as float32."""


@dataclasses.dataclass
class Result:
    """The result of a run.

    Attributes:
      outputs: what the kernel returned on each rank, with tensors as NumPy arrays.
      mutated: for each rank, the new contents of the tensor arguments that the kernel wrote, by
        the argument's path ("k_cache", "K_caches[0]"). The caller's arrays are unchanged.
      record: the instruction streams; empty with ``Options(record=False)``.
      findings: problems that the run reported instead of raising an error.
    """

    outputs: list[Any]
    mutated: list[dict[str, np.ndarray]]
    record: Record
    findings: list[Finding]


class Kernel:
    """A function decorated with `jit`."""

    def __init__(
        self, function: Callable[..., Any], lnc: int | None = None, barrier_check: bool = False
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self.lnc = lnc
        self.barrier_check = barrier_check

    def __getitem__(self, lnc: Any) -> "Kernel":
        if isinstance(lnc, tuple) and len(lnc) == 1:
            lnc = lnc[0]
        return Kernel(self.function, int(lnc), self.barrier_check)

    def enable_core_barrier_checker(self) -> "Kernel":
        """Returns the same kernel, to run with ``Options(core_barriers="error")``."""
        return Kernel(self.function, self.lnc, True)

    def disable_core_barrier_checker(self) -> "Kernel":
        """Returns the same kernel, to run with the `core_barriers` of the options."""
        return Kernel(self.function, self.lnc, False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function inside a running kernel; elsewhere, simulates the kernel."""
        if running_core() is not None:
            return self.function(*args, **kwargs)
        return simulate(self)(*args, **kwargs)


def jit(fn: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Turns a function into a kernel. A call from outside a kernel simulates it."""
    if fn is None:
        return lambda function: jit(function, **kwargs)
    return fn if isinstance(fn, Kernel) else Kernel(fn)


def simulate(kernel: Any) -> Callable[..., Any]:
    """Returns a function that runs a kernel on one rank, as ``nki.simulate`` does.

    The function takes and returns NumPy arrays, or PyTorch tensors if any argument is one. Arrays
    that the kernel writes are updated in place.
    """

    def simulated(*args: Any, **kwargs: Any) -> Any:
        result = run(kernel, [(args, kwargs)])
        originals = _by_path(kernel, args, kwargs)
        for path, array in result.mutated[0].items():
            _update(originals[path], array)
        if any(type(original).__module__ == "torch" for original in originals.values()):
            return _to_torch(result.outputs[0])
        return result.outputs[0]

    return simulated


def run(
    kernel: Any,
    rank_arguments: Sequence[Any],
    *,
    lnc: int | None = None,
    target: str | None = None,
    options: Options | None = None,
) -> Result:
    """Runs a kernel on several ranks at once. The package's documentation has an example.

    Args:
      kernel: a function, or a `jit` kernel, which may carry its LNC: ``kernel[2]``.
      rank_arguments: one entry per rank: a dict of keyword arguments, a tuple of positional
        arguments, or a pair (tuple, dict) of both. The kernel gets arrays as tensors, also those
        inside lists, tuples and dicts.
      lnc: cores per rank, 1 or 2; by default the kernel's LNC, or else 1.
      target: "trn1", "trn2" or "trn3"; by default $NEURON_PLATFORM_TARGET_OVERRIDE, or else trn2.
      options: what to check and keep.

    Raises:
      ValueError: NKI_PRECISE_FP is set to something else than 1, or the target or LNC is unknown.
      NkiValidationError: (or a subclass, see `errors`) the kernel breaks a documented limit.
      Exception: the kernel raised it.
    """
    _check_precision()
    function = kernel.function if isinstance(kernel, Kernel) else kernel
    cores = lnc or getattr(kernel, "lnc", None) or 1
    chosen = options or Options()
    if isinstance(kernel, Kernel) and kernel.barrier_check:
        chosen = dataclasses.replace(chosen, core_barriers="error")
    machine = Machine(target_named(target), len(rank_arguments), cores, chosen)
    launches = [
        _Launch(machine, rank, *_split_arguments(arguments))
        for rank, arguments in enumerate(rank_arguments)
    ]
    returned: dict[tuple[int, int], Any] = {}
    failures: dict[tuple[int, int], BaseException] = {}

    def execute(core: Core) -> None:
        key = (core.rank, core.index)
        set_current_core(core)
        failure: BaseException | None = None
        try:
            with np.errstate(all="ignore"):
                launch = launches[core.rank]
                returned[key] = function(*launch.args, **launch.kwargs)
        except BaseException as error:
            explain(error)
            failure = failures[key] = error
        finally:
            set_current_core(None)
            machine.board.leave(key, failure)

    with one_blas_thread():
        _run_threads(execute, list(machine.cores.values()))
    _raise_first(failures, machine)
    _check_turns(machine, finished=True)
    if chosen.races != "ignore" and cores > 1:
        races.check(machine)
    if chosen.core_barriers != "ignore" and cores > 1:
        core_barriers.check(machine)
    if chosen.capacity != "ignore":
        capacity.check(machine)
    return Result(
        [_export(returned[(rank, 0)], machine) for rank in range(machine.ranks)],
        [launch.mutated() for launch in launches],
        machine.record(),
        machine.findings,
    )


def _check_precision() -> None:
    """Refuses what AWS's simulator has and this one has not, rather than ignoring it."""
    if os.environ.get(PRECISION_VARIABLE, "1") != "1":
        raise ValueError(
            f"{PRECISION_VARIABLE}={os.environ[PRECISION_VARIABLE]}: expected 1 or nothing; "
            "every dtype is stored in its own width here; give the kernel float32 arrays instead"
        )


def _run_threads(execute: Callable[[Core], None], cores: list[Core]) -> None:
    if len(cores) == 1 and running_core() is None:
        execute(cores[0])
        return
    threads = [threading.Thread(target=execute, args=(core,), daemon=True) for core in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _raise_first(failures: dict[tuple[int, int], BaseException], machine: Machine) -> None:
    """Raises the error that stopped the run, not the errors of the cores that it stopped."""
    own = [e for _, e in sorted(failures.items()) if not isinstance(e, errors.PeerFailedError)]
    if own and isinstance(own[0], errors.MissingPeerError):
        # A core that makes more turns of a loop than its peer waits forever in one of them.
        _check_turns(machine, finished=False)
    if own:
        raise own[0]
    if failures:
        raise next(iter(failures.values()))


def _check_turns(machine: Machine, finished: bool) -> None:
    for rank in range(machine.ranks):
        loops = [machine.cores[(rank, core)].loops for core in range(machine.lnc)]
        check_equal_turns(rank, loops, finished)


def _split_arguments(arguments: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(arguments, Mapping):
        return (), dict(arguments)
    if (
        isinstance(arguments, tuple)
        and len(arguments) == 2
        and isinstance(arguments[0], tuple)
        and isinstance(arguments[1], dict)
    ):
        return arguments
    return tuple(arguments), {}


def _as_array(value: Any) -> np.ndarray | None:
    """Converts a NumPy, PyTorch or JAX array to a NumPy array; None for any other value."""
    if isinstance(value, np.ndarray):
        return value
    module = type(value).__module__
    if module == "torch" or module.startswith("torch."):
        return _torch_array(value)
    if hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype"):
        return np.asarray(value)
    return None


def _torch_array(value: Any) -> np.ndarray | None:
    if not hasattr(value, "detach"):
        return None
    plain = value.detach().cpu().contiguous()
    info = dtypes.info(plain.dtype)
    try:
        array = plain.numpy()
    except TypeError:
        bits = {1: "uint8", 2: "int16"}[plain.element_size()]
        import torch

        array = plain.view(getattr(torch, bits)).numpy().view(info.storage)
    return array


class _Launch:
    """One rank's arguments as tensors in HBM."""

    def __init__(self, machine: Machine, rank: int, args: tuple, kwargs: dict[str, Any]):
        self.core = machine.cores[(rank, 0)]
        self.tensors: dict[str, NkiTensor] = {}
        self.args = tuple(self._wrap(value, f"[{i}]") for i, value in enumerate(args))
        self.kwargs = {name: self._wrap(value, name) for name, value in kwargs.items()}

    def _wrap(self, value: Any, path: str) -> Any:
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(
                *(self._wrap(v, f"{path}.{f}") for f, v in zip(value._fields, value, strict=True))
            )
        if isinstance(value, (list, tuple)):
            return type(value)(self._wrap(v, f"{path}[{i}]") for i, v in enumerate(value))
        if isinstance(value, dict):
            return {key: self._wrap(v, f"{path}[{key!r}]") for key, v in value.items()}
        array = _as_array(value)
        if array is None or array.ndim == 0:
            return value
        info = dtypes.info(array.dtype)
        stored = np.ascontiguousarray(array, dtype=None if info.kind == "bool" else info.storage)
        storage = self.core.memory.adopt_input(path, stored)
        tensor = NkiTensor(array.shape, info.name, storage, MemoryRegion.shared_hbm, path)
        self.tensors[path] = tensor
        return tensor

    def mutated(self) -> dict[str, np.ndarray]:
        """The new contents of the arguments that the kernel wrote, by path."""
        return {
            path: _host_array(tensor)
            for path, tensor in self.tensors.items()
            if tensor.storage is not None and tensor.storage.written
        }


def _host_array(tensor: NkiTensor) -> np.ndarray:
    array = tensor.numpy()
    return array.astype(bool) if tensor.dtype == "bool" else array


def _export(value: Any, machine: Machine) -> Any:
    """Converts what a kernel returned: tensors become NumPy arrays."""
    if isinstance(value, NkiTensor):
        _check_output(value, machine)
        return _host_array(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_export(v, machine) for v in value)
    if isinstance(value, dict):
        return {key: _export(v, machine) for key, v in value.items()}
    return value


def _check_output(tensor: NkiTensor, machine: Machine) -> None:
    """Checks that a returned tensor is in HBM and that all of it was written."""
    storage = tensor.storage
    assert storage is not None
    if storage.space != "hbm":
        raise errors.NkiValidationError(f"a kernel returns tensors in HBM, got {described(tensor)}")
    if storage.scope:
        raise errors.NkiValidationError(
            f"the kernel returns the {storage.describe()}, which was allocated in the body of a "
            "device loop and does not exist outside of it"
        )
    if storage.shadow is None or storage.shadow.all():
        return
    missing = int((storage.shadow == 0).sum())
    message = (
        f"the kernel returns the {storage.describe()}, but {missing} of its {storage.nbytes} "
        "bytes were never written"
    )
    if machine.options.uninitialized == "error":
        raise errors.UninitializedReadError(message)
    machine.report("uninitialized", message)


def _by_path(kernel: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The caller's array objects, by the same paths as in `_Launch`."""
    found: dict[str, Any] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, (list, tuple)):
            for i, v in enumerate(value):
                visit(v, f"{path}[{i}]")
        elif isinstance(value, dict):
            for key, v in value.items():
                visit(v, f"{path}[{key!r}]")
        elif hasattr(value, "shape"):
            found[path] = value

    for i, value in enumerate(args):
        visit(value, f"[{i}]")
    for name, value in kwargs.items():
        visit(value, name)
    return found


def _update(original: Any, array: np.ndarray) -> None:
    if isinstance(original, np.ndarray):
        original[...] = array
    elif type(original).__module__ == "torch":
        original.copy_(_to_torch(array))


def _to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        import torch

        if value.dtype.kind == "V" or value.dtype.name in ("bfloat16", *dtypes.FLOAT8):
            bits = value.view(f"u{value.dtype.itemsize}").view(f"i{value.dtype.itemsize}")
            return torch.from_numpy(bits).view(getattr(torch, value.dtype.name))
        return torch.from_numpy(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_to_torch(v) for v in value)
    return value
