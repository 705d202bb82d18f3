"""Running a megakernel in the NKI simulator from inside a jitted program on a CPU.

The program calls a host function in place of the kernel. Under `shard_map` every device calls it;
the calls of one replica group meet, and the last to come runs the simulator for all of them, so
that the kernel's all-reduces exchange the ranks' data.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.replica_groups import current_mesh, is_bound
from jax_tkg.installed_nki import find_nki
from jax_tkg.lowering.host_call import Like, host_call
from jax_tkg.lowering.implementation import Implementation, on_plain_arrays
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch
from jax_tkg.lowering.kernel_limits import check_megakernel
from jax_tkg.lowering.launches import layer_tuples, run_launches, split_results
from jax_tkg.lowering.neuron_settings import logical_cores, simulated_target
from jax_tkg.lowering.rank_meetings import RankMeetings
from jax_tkg.lowering.static_values import looked_up


def simulated_transformer(
    operands: Operands, parameters: Parameters, kernel: KernelInterface = MEGAKERNEL
) -> tuple[Any, ...]:
    """The forward pass by a simulated kernel, with the results of `reference.transformer`."""
    run = functools.partial(_simulated, parameters=parameters, kernel=kernel)
    return run_launches(operands, parameters, run, kernel)


def _simulated(
    tensors: dict[str, Any], launch: Launch, parameters: Parameters, kernel: KernelInterface
) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(tensors)
    cores, target = logical_cores(parameters), simulated_target(tensors)
    call = _Call(structure, launch, cores, target, kernel)
    # The results are like the operands that they take the place of.
    places = jax.tree.unflatten(structure, range(1, len(leaves) + 1))
    like: list[Like]
    like, results = jax.tree.flatten((places["X"], places["K_caches"], places["V_caches"]))
    count = len(like)
    if tensors.get("W_head") is not None:
        shape = (*tensors["X"].shape[:2], parameters.candidates_per_token)
        like += [(places["X"], shape, "float32"), (places["X"], shape, "int32")]
    made = host_call(call.run, [_rank(parameters), *leaves], like)
    return *jax.tree.unflatten(results, made[:count]), *made[count:]


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
    return jnp.int32(jax.lax.axis_index(tuple(bound)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """One call of the primitive in a program; all its devices share this object."""

    structure: Any
    launch: Launch
    cores: int
    target: str
    kernel: KernelInterface

    def run(self, rank: Any, *leaves: np.ndarray) -> list[np.ndarray]:
        """The host's side: waits for the replica group, and returns this rank's results."""
        from jax_tkg.simulator.errors import NkiValidationError

        number = int(rank)
        groups = self.launch.replica_groups or ((number,),)
        group = next(members for members in groups if number in members)
        try:
            results = _meetings.meet(
                (self, group),
                number,
                group,
                lambda: jax.tree.unflatten(self.structure, leaves),
                self._launch,
            )
        except NkiValidationError as error:
            # The message says where; JAX would put the simulator's frames before it.
            raise error.with_traceback(None) from None
        return jax.tree.leaves(results)

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
        kernel = _load(self.kernel)
        static = looked_up(static, self.kernel.module())
        result = simulator.run(
            kernel,
            [{**layer_tuples(given, self.launch), **static} for given in arguments],
            lnc=self.cores,
            target=self.target,
            options=simulator.Options(record=False),
        )
        return [
            split_results(output, given, self.launch)
            for output, given in zip(result.outputs, arguments, strict=True)
        ]


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


_meetings = RankMeetings()


def simulator_problem(platform: str) -> str | None:
    """Why the simulator cannot run on this machine, or None."""
    del platform  # It is always cpu.
    found = find_nki()
    if found is None:
        return None
    return (
        f"AWS's nki package is installed (nki {found.version} in {found.location}); kernels import "
        "it in place of the simulator"
    )


def _check(operands: Operands, parameters: Parameters, platform: str) -> None:
    del platform
    check_megakernel(operands, parameters)


SIMULATE = Implementation(
    name="simulate",
    description="a host callback",
    platforms=("cpu",),
    available=simulator_problem,
    check=_check,
    run=on_plain_arrays(simulated_transformer),
    kernel=lambda operands: MEGAKERNEL,
    calls_host=True,
)
