"""Running a megakernel in the NKI simulator from inside a jitted program on a CPU.

A host callback stands in the place of the kernel. Under `shard_map` every device makes its own
callback; those of one replica group meet here, and the last to come runs the simulator for all of
them, so that the kernel's all-reduces really exchange the ranks' data.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import threading
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.replica_groups import current_mesh, is_bound
from jax_tkg.installed_nki import find_nki
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch
from jax_tkg.lowering.launches import layer_tuples, run_launches
from jax_tkg.lowering.neuron_settings import logical_cores, simulated_target

PATIENCE_SECONDS = 600.0
"""How long a rank waits for another to reach the same call."""


def simulated_transformer(
    operands: Operands, parameters: Parameters, kernel: KernelInterface = MEGAKERNEL
) -> tuple[jax.Array, Any, Any]:
    """The forward pass by a simulated kernel: what `reference.transformer` gives."""
    run = functools.partial(_simulated, parameters=parameters, kernel=kernel)
    return run_launches(operands, parameters, run, kernel)


def _simulated(
    tensors: dict[str, Any], launch: Launch, parameters: Parameters, kernel: KernelInterface
) -> tuple[jax.Array, Any, Any]:
    leaves, structure = jax.tree.flatten(tensors)
    cores, target = logical_cores(parameters), simulated_target(tensors)
    call = _Call(structure, launch, cores, target, kernel)
    like = (tensors["X"], tensors["K_caches"], tensors["V_caches"])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    # One result: JAX 0.7 gives a callback with several a wrong sharding inside a shard_map.
    packed = jax.ShapeDtypeStruct((size,), jnp.uint8)
    return _unpack(jax.pure_callback(call.run, packed, _rank(parameters), *leaves), like)


def _pack(results: Any) -> np.ndarray:
    """The bytes of all arrays, one after the other."""
    arrays = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(results)]
    return np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])


def _unpack(packed: jax.Array, like: Any) -> Any:
    """Arrays with the shapes and dtypes of those in `like`."""
    leaves, structure = jax.tree.flatten(like)
    unpacked, start = [], 0
    for leaf in leaves:
        itemsize = leaf.dtype.itemsize
        part = packed[start : start + leaf.size * itemsize].reshape(*leaf.shape, itemsize)
        unpacked.append(jax.lax.bitcast_convert_type(part, leaf.dtype))
        start += leaf.size * itemsize
    return jax.tree.unflatten(structure, unpacked)


def _rank(parameters: Parameters) -> jax.Array:
    """This device's number in the mesh, in row-major order."""
    mesh = current_mesh()
    bound = [name for name in mesh.axis_names if is_bound(name)]
    groups = parameters.replica_groups
    if groups is not None and len(groups[0]) > 1 and len(bound) < len(mesh.axis_names):
        raise ValueError(
            "implementation: expected another than 'simulate' in a shard_map that leaves axes of "
            f"the mesh to the compiler, got {parameters.implementation!r} with "
            f"{tuple(mesh.axis_names)} of which {tuple(bound)} are manual"
        )
    if not bound:
        return jnp.int32(0)
    _check_threads(mesh.size)
    return jnp.int32(jax.lax.axis_index(tuple(bound)))


def _check_threads(devices: int) -> None:
    """Every waiting callback holds a thread of XLA's, which has as many as cores or CPU devices.

    The last one to come needs another, for its arguments.
    """
    threads = max(len(jax.devices("cpu")), os.cpu_count() or 1)
    if threads <= devices:
        raise ValueError(
            f"implementation: expected more CPU devices than the {devices} of the mesh for "
            f"'simulate', got {len(jax.devices('cpu'))}; make one more before JAX starts: "
            f"jax.config.update('jax_num_cpu_devices', {devices + 1})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """One call of the primitive in a program; all its devices share this object."""

    structure: Any
    launch: Launch
    cores: int
    target: str
    kernel: KernelInterface

    def run(self, rank: Any, *leaves: Any) -> np.ndarray:
        """The host's side: waits for the replica group, and returns this rank's results packed."""
        number = int(rank)
        groups = self.launch.replica_groups or ((number,),)
        group = next(members for members in groups if number in members)
        arguments = jax.tree.unflatten(self.structure, [np.asarray(leaf) for leaf in leaves])
        results = _board.meet(
            (self, group), group.index(number), len(group), arguments, self._launch
        )
        return _pack(results)

    def _launch(self, arguments: list[dict[str, Any]]) -> list[Any]:
        """Runs the kernel on all ranks of a group."""
        from jax_tkg import simulator

        ranks = len(arguments)
        # The ranks of the group are all the ranks that the simulator runs.
        static = self.kernel.static_arguments(
            dataclasses.replace(
                self.launch, replica_groups=(tuple(range(ranks)),) if ranks > 1 else None
            )
        )
        result = simulator.run(
            _load(self.kernel),
            [{**layer_tuples(given, self.launch), **static} for given in arguments],
            lnc=self.cores,
            target=self.target,
            options=simulator.Options(record=False),
        )
        return [self._results(output) for output in result.outputs]

    def _results(self, output: tuple[np.ndarray, ...]) -> Any:
        hidden, *caches = output
        half = len(caches) // 2
        if self.launch.stacked_caches:
            return hidden, caches[0], caches[1]
        return hidden, tuple(caches[:half]), tuple(caches[half:])


def _load(kernel: KernelInterface) -> Any:
    """The kernel, written against the simulator's `nki`; it returns the caches too."""
    from jax_tkg import simulator

    if not simulator.install():
        raise RuntimeError(
            "simulated transformer_tkg: expected an environment without AWS's nki package, whose "
            f"kernels cannot run in the simulator, got {find_nki()}"
        )
    run = importlib.import_module(kernel.module()).transformer_tkg
    return run if kernel.returns_caches else _returning_caches(run)


def _returning_caches(run: Any) -> Any:
    def transformer_tkg(K_caches: Any, V_caches: Any, **arguments: Any) -> Any:
        hidden = run(K_caches=K_caches, V_caches=V_caches, **arguments)
        return (hidden, *K_caches, *V_caches)

    return transformer_tkg


class _Board:
    """Where the callbacks of a replica group meet."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._meetings: dict[Hashable, _Meeting] = {}

    def meet(self, key: Hashable, index: int, size: int, brought: Any, launch: Any) -> Any:
        with self._condition:
            meeting = self._meetings.setdefault(key, _Meeting())
            meeting.brought[index] = brought
            last = len(meeting.brought) == size
            if last:
                # The next round of a loop begins a meeting of its own.
                del self._meetings[key]
        if last:
            try:
                meeting.results = launch([meeting.brought[rank] for rank in range(size)])
            except BaseException as error:
                meeting.failure = error
            with self._condition:
                meeting.done = True
                self._condition.notify_all()
        else:
            with self._condition:
                if not self._condition.wait_for(lambda: meeting.done, PATIENCE_SECONDS):
                    missing = sorted(set(range(size)) - set(meeting.brought))
                    raise RuntimeError(
                        f"simulated transformer_tkg: ranks {missing} of a replica group of {size} "
                        f"did not come within {PATIENCE_SECONDS:.0f} s"
                    )
        if meeting.failure is not None:
            raise RuntimeError(f"simulated transformer_tkg: {meeting.failure}") from meeting.failure
        return meeting.results[index]


@dataclasses.dataclass
class _Meeting:
    brought: dict[int, Any] = dataclasses.field(default_factory=dict)
    results: Any = None
    failure: BaseException | None = None
    done: bool = False


_board = _Board()
