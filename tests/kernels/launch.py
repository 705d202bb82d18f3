"""Running the kernel in the simulator on the arguments of the public function."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jax_tkg import simulator
from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.canonical import run_checked
from jax_tkg.call.results import named_results
from jax_tkg.call.signature import bind_arguments
from jax_tkg.kernels.transformer import transformer_tkg as kernel
from jax_tkg.lowering import launches
from jax_tkg.lowering.kernel_interface import MEGAKERNEL
from jax_tkg.lowering.kernel_limits import spare_sbuf
from tests import cases, parallel_cases


def canonical(arguments: dict[str, Any], **options: Any) -> tuple[Operands, Parameters]:
    """The operands and parameters that a call of the public function binds."""
    found: list[tuple[Operands, Parameters]] = []

    def keep(operands: Operands, parameters: Parameters) -> tuple[Any, ...]:
        found.append((operands, parameters))
        candidates = () if operands.W_head is None else (operands.X, operands.X)
        return operands.X, operands.K_caches, operands.V_caches, *candidates

    run_checked(keep, bind_arguments(**arguments, **options))
    return found[0]


def target_of(shape: cases.Shape) -> str:
    """The oldest machine that has the float8 formats of a case."""
    kinds = {shape.cache_dtype, *(kind for layer in shape.quantized for kind in layer)}
    return "trn3" if "float8_e4m3fn" in kinds else "trn2"


@functools.partial(jax.jit, static_argnums=(1, 2))
def _tensors(operands: Operands, looped: bool, layer_kinds: tuple[int, ...] | None) -> Any:
    """The kernel's tensors; one program, where each operation on its own would be one."""
    return MEGAKERNEL.operands(operands, looped, layer_kinds)


def run(
    shape: cases.Shape,
    ranks: list[dict[str, Any]],
    cores: int = 1,
    on_chip: bool = False,
    stacked: bool = False,
    record: bool = False,
    **options: Any,
) -> tuple[list[Any], simulator.Result]:
    """Runs the kernel on all ranks of a group; `options` are those of a head.

    Returns:
      Per rank the public function's results, and the simulator's.
    """
    world = tuple(range(len(ranks)))
    groups = (world,) if len(ranks) > 1 else None
    given = []
    mesh = jax.sharding.AbstractMesh((len(ranks),), ("ranks",))
    for rank, arguments in enumerate(ranks):
        with jax.sharding.use_abstract_mesh(mesh):
            operands, parameters = canonical(
                cases.stack(arguments, shape.layer_kinds) if stacked else arguments,
                replica_groups=groups,
                **cases.options(shape),
                **options,
            )
        looped = stacked and (shape.L == 1 or launches.launches_loop(operands, parameters))
        spare = spare_sbuf(operands, dataclasses.replace(parameters, lnc=cores))
        launch = launches.Launch(
            dataclasses.replace(parameters, sbuf_residual_and_cc=on_chip),
            groups,
            0,
            shape.L,
            stacked,
            looped,
            caches_by_kind=stacked and parameters.layer_kinds is not None,
            place_bytes=spare.place_bytes,
            held_buffers=spare.held_buffers,
        )
        tensors = jax.tree.map(np.asarray, _tensors(operands, looped, parameters.layer_kinds))
        if shape.E_held < shape.E:
            # Outside of a mesh no rank knows its number.
            tensors["expert_order"] = np.roll(tensors["expert_order"], rank * shape.E_held)
        given.append(
            {**launches.layer_tuples(tensors, launch), **MEGAKERNEL.static_arguments(launch)}
        )
    result = simulator.run(
        kernel,
        given,
        lnc=cores,
        target=target_of(shape),
        # Program order of an engine's queue alone does not make a kernel safe on two cores.
        options=simulator.Options(record=record, ordering="dependencies", core_barriers="error"),
    )
    outputs = []
    for hidden, *caches in result.outputs:
        split = launches.split_results((hidden, *caches), given[0], launch)
        outputs.append(named_results(split))
    return outputs, result


NEAR_TIE = {"float32": 1e-4, "bfloat16": 0.04}
"""Scores of experts that differ by less may be chosen in either order: other values are drawn."""


def check(shape: cases.Shape, ranks: int = 1, seed: int = 0, **how: Any) -> simulator.Result:
    """Runs the kernel on random ranks, and compares all of its results with the oracle's.

    Those of layers with experts are drawn without near ties.
    """
    for attempt in range(50):
        (row,) = parallel_cases.random_ranks(shape, 1, ranks, seed + attempt)
        gaps: list[float] = []
        hidden, K, V, written = cases.expected(shape, row, row, gaps)
        if not gaps or min(gaps) > NEAR_TIE[shape.dtype]:
            break
    else:
        raise AssertionError(f"all draws of {shape} have near ties")
    outputs, result = run(shape, row, **how)
    for index, arguments in enumerate(row):
        cases.check(outputs[index], shape, arguments, hidden, K[index], V[index], written)
    return result
