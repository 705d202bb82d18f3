"""Recording the instructions of a kernel's launch on one rank, in the simulator."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jax_tkg import simulator
from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.operand_table import OPERANDS, names
from jax_tkg.lowering.implementation import Implementation
from jax_tkg.lowering.kernel_interface import KernelInterface, Launch
from jax_tkg.lowering.kernel_limits import SpareSbuf, spare_sbuf
from jax_tkg.lowering.launches import layer_tuples
from jax_tkg.lowering.nkilib import NKILIB
from jax_tkg.lowering.simulate import SIMULATE
from jax_tkg.lowering.static_values import looked_up
from jax_tkg.profile.model_shapes import Case
from jax_tkg.simulator.machine.record import Record

KERNELS = {"ours": SIMULATE, "nkilib": NKILIB}
"""The implementations whose kernels are recorded: ours, and AWS's from the checkout that NKILIB
names."""


def record(case: Case, layers: int, kernel: str = "ours") -> Record:
    """The instructions of a launch of `layers` equal layers.

    All weights and caches are zero, for the instructions do not depend on them; but for a router
    that has the tokens choose `Case.chosen_experts` in every layer. One rank runs, or those that
    share out a context; its all-reduces have a group of these alone, which
    `schedule(group_size=...)` makes larger.

    Args:
      case: the sizes.
      layers: of the launch.
      kernel: one of `KERNELS`.

    Raises:
      ValueError: the kernel cannot run the case, or there is no checkout of AWS's.
    """
    if kernel == "nkilib":
        # It takes masks and flat caches only.
        case = dataclasses.replace(case, lengths=False, block_len=0)
        if case.cache_dtype is not None:
            raise ValueError(f"cache_dtype={case.cache_dtype!r}: expected None for AWS's kernel")
    # AWS's kernel takes its layers one by one.
    looped = case.looped and kernel == "ours"
    operands = _operands(case, layers, looped)
    interface = _interface(operands, case, layers, KERNELS[kernel])
    if looped and not interface.loops(operands):
        raise ValueError("profile: the caches of all layers together are too large for a loop")
    ranks = tuple(range(case.context_parallel))
    parameters = Parameters(
        layers,
        sbuf_residual_and_cc=case.residual_on_chip and kernel == "ours",
        context_parallel=case.context_parallel,
        lnc=case.lnc,
        **dict(case.options),
    )
    spare = spare_sbuf(operands, parameters) if kernel == "ours" else SpareSbuf()
    launch = Launch(
        parameters=parameters,
        replica_groups=(ranks,) if case.tensor_parallel > 1 else None,
        first_layer=0,
        num_layers=layers,
        stacked_caches=looped,
        looped=looped,
        place_bytes=spare.place_bytes,
        held_buffers=spare.held_buffers,
    )
    tensors = layer_tuples(_prepared(interface, operands, launch), launch)
    arguments = {name: tensors[name] for name in interface.tensors}
    options = simulator.Options(uninitialized="ignore", races="ignore")
    # AWS's kernel prints its log, with statistics of its memory.
    with contextlib.redirect_stdout(io.StringIO()):
        function = importlib.import_module(interface.module()).transformer_tkg
        static = looked_up(interface.static_arguments(launch), interface.module())
        result = simulator.run(
            function,
            [{**arguments, **static} for _ in ranks],
            lnc=case.lnc,
            target=case.target,
            options=options,
        )
    return result.record


def _prepared(interface: KernelInterface, operands: Operands, launch: Launch) -> dict[str, Any]:
    """The kernel's tensors by name; what is made of masks and positions in one compilation."""
    small = {name: getattr(operands, name) for name in names("mask", "index", "table")}
    as_they_are: dict[str, Any] = {}

    def prepare(small: dict[str, Any]) -> dict[str, Any]:
        given = interface.operands(
            dataclasses.replace(operands, **small),
            launch.looped,
            launch.parameters.layer_kinds,
            launch.parameters,
        )
        made = {name: value for name, value in given.items() if _is_computed(value)}
        as_they_are.update({name: given[name] for name in given if name not in made})
        return made

    return {**jax.jit(prepare)(small), **as_they_are}


def _is_computed(value: Any) -> bool:
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def _interface(
    operands: Operands, case: Case, layers: int, implementation: Implementation
) -> KernelInterface:
    """The kernel of an implementation, once the case is known to be within its limits."""
    problem = implementation.available("cpu")
    if problem is not None:
        raise ValueError(f"profile: {problem}")
    simulator.install()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), operands)
    # AWS's residual always goes through HBM.
    parameters = Parameters(
        layers, lnc=case.lnc, context_parallel=case.context_parallel, **dict(case.options)
    )
    implementation.check(shapes, parameters, "cpu")
    assert implementation.kernel is not None
    return implementation.kernel(shapes)


def _operands(case: Case, layers: int, stacked: bool) -> Operands:
    """Zeros as NumPy arrays, to which the system gives no memory: layers share one array of each,
    or have one with a layer axis if `stacked`."""
    arrays: dict[str, Any] = dict.fromkeys(row.name for row in OPERANDS)
    for row in case.rows():
        shape = case.array_shape(row)
        axis = (layers,) if row.per_layer and stacked else ()
        array = np.zeros((*axis, *shape), _dtype(case.dtype_of(row)))
        arrays[row.name] = (array,) * layers if row.per_layer and not stacked else array
    for name, value in (("mask_cache", 1), ("context_lengths", case.S_ctx)):
        if arrays[name] is not None:
            arrays[name] = np.full_like(arrays[name], value)
    if case.experts:
        tokens, router = _routed(case)
        arrays["X"] = tokens.astype(arrays["X"].dtype).reshape(arrays["X"].shape)
        arrays["W_routers"] = jax.tree.map(
            lambda zeros: np.broadcast_to(router, zeros.shape).astype(zeros.dtype),
            arrays["W_routers"],
        )
        arrays["W_gamma_mlps"] = jax.tree.map(np.ones_like, arrays["W_gamma_mlps"])
    for name in names("cache_scale"):
        # A scale of zero has no inverse.
        if arrays[name] is not None:
            arrays[name] = jax.tree.map(np.ones_like, arrays[name])
    tables = arrays["block_tables"]
    if tables is not None:
        arrays["block_tables"] = np.arange(tables.size, dtype=tables.dtype).reshape(tables.shape)
    first = np.zeros((case.B, 1), np.int32)
    if tables is not None:
        # Slots of the pool: each sequence writes to blocks of its own.
        first += case.S_ctx * np.arange(case.B, dtype=np.int32)[:, None]
    arrays["position_ids"] = first + np.int32(case.S_ctx - case.S)
    return Operands(**arrays)


def _routed(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B * S, H], and a router [H, E] whose logits for them are large for chosen experts.

    Layers whose other weights are zero add nothing to the tokens, so all choose alike.
    """
    count = case.B * case.S
    tokens = np.random.default_rng(0).standard_normal((count, case.H))
    logits = np.zeros((count, case.experts))
    np.put_along_axis(logits, case.chosen_experts(), 8.0, axis=1)
    rms = np.sqrt(np.square(tokens).mean(axis=1, keepdims=True))
    return tokens, np.linalg.pinv(tokens / rms) @ logits


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))
