"""The megakernel called by NKI itself, on NumPy arrays, without JAX's devices.

NKI runs a kernel on several ranks where each argument is a list with an array for each rank.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_tkg import sharding
from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.canonical import run_checked
from jax_tkg.call.signature import bind_arguments
from jax_tkg.lowering import kernel_entry
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, Launch
from jax_tkg.lowering.neuron_settings import logical_cores, naming_cores


def run(whole: dict[str, Any], num_layers: int, ranks: int) -> tuple[Any, list[Any], list[Any]]:
    """Runs the whole model's arguments on tensor-parallel ranks.

    Args:
      whole: arguments of `transformer_tkg` by name, with lists of arrays for layers, as
        `sharding.partition_specs("tp")` splits them.
      num_layers: L.
      ranks: how many ranks all-reduce.

    Returns:
      Hidden states of rank 0, and the key and value caches of all ranks, joined again.

    Raises:
      ValueError: the ranks' hidden states differ.
    """
    calls = [_given(whole, num_layers, rank, ranks) for rank in range(ranks)]
    given = [tensors for tensors, _ in calls]
    parameters = calls[0][1]
    groups = (tuple(range(ranks)),) if ranks > 1 else None
    launch = Launch(parameters, groups, 0, num_layers, stacked_caches=False)
    entry = kernel_entry.load_entry(kernel_entry.entry_source(given[0], launch))
    flat = [[np.asarray(value) for value in kernel_entry.flatten(tensors)[1]] for tensors in given]
    cores = logical_cores(parameters)
    with naming_cores(cores):
        if ranks == 1:
            results = [entry[cores](*flat[0])]
        else:
            results = entry[cores](*(list(each) for each in zip(*flat, strict=True)))
    hidden, *caches = zip(*results, strict=True)
    if any(np.asarray(other).tobytes() != np.asarray(hidden[0]).tobytes() for other in hidden):
        raise ValueError("the hidden states after the last all-reduce differ between ranks")
    # The KV heads are the second axis.
    joined = [np.concatenate(each, axis=1) for each in caches]
    return hidden[0], joined[:num_layers], joined[num_layers:]


def _given(
    whole: dict[str, Any], num_layers: int, rank: int, ranks: int
) -> tuple[dict[str, Any], Parameters]:
    """One rank's tensors of the kernel, by name."""
    specs = sharding.partition_specs("tp")
    found: list[tuple[Operands, Parameters]] = []

    def part(array: Any, spec: Any) -> Any:
        if "tp" not in spec:
            return array
        return jnp.split(array, ranks, list(spec).index("tp"))[rank]

    def keep(operands: Operands, parameters: Parameters) -> tuple[Any, Any, Any]:
        found.append((operands, parameters))
        return operands.X, operands.K_caches, operands.V_caches

    arguments = {
        name: jax.tree.map(lambda array, name=name: part(array, getattr(specs, name)), value)
        for name, value in whole.items()
    }
    run_checked(keep, bind_arguments(**arguments, num_layers=num_layers))
    ((operands, parameters),) = found
    return MEGAKERNEL.operands(operands, False), parameters
