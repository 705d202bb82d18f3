"""One of several real processes of a tensor-parallel decode loop; started by test_multiprocess.

Usage: multiprocess_worker.py COORDINATOR_ADDRESS PROCESSES PROCESS_ID. Every process has one CPU
device and gives only its own rank's weights and caches; each checks its own results.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax_tkg
import jax_tkg.sharding
from jax_tkg.call.arguments import PER_LAYER
from tests import cases, parallel_cases

SHAPE = cases.Shape(B=2, S=2, q=2, k=1, d=64, L=2)


def _place(mesh: jax.sharding.Mesh, spec: PartitionSpec, local: Any) -> jax.Array:
    """The global array of which this process holds `local`."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(local))


def _local(array: jax.Array) -> np.ndarray:
    (shard,) = array.addressable_shards
    return np.asarray(shard.data)


def main(coordinator: str, processes: int, process: int) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)
    assert jax.process_count() == processes, jax.process_count()
    assert len(jax.devices()) == processes, jax.devices()
    assert len(jax.local_devices()) == 1, jax.local_devices()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("tp",))
    specs = jax_tkg.sharding.partition_specs("tp")
    # The same seed everywhere, so that every process can ask the oracle for the whole group.
    ranks = parallel_cases.random_ranks(SHAPE, 1, processes, seed=0)
    mine = ranks[0][process]
    arguments, in_specs = {}, {}
    for name, value in mine.items():
        if value is None:
            continue
        in_specs[name] = getattr(specs, name)
        if name in PER_LAYER:
            arguments[name] = [_place(mesh, in_specs[name], layer) for layer in value]
        else:
            # Masks are split by query heads; tokens, tables and positions are whole everywhere.
            arguments[name] = _place(mesh, in_specs[name], value)

    def step(arguments: dict[str, Any]) -> Any:
        out = jax_tkg.transformer_tkg(**arguments, **cases.options(SHAPE), axis_name="tp")
        return tuple(out)

    run = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(in_specs,),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
    )
    out = jax_tkg.TransformerTkgOutput(*jax.tree.map(_local, run(arguments)))
    hidden, K, V, written = cases.expected(SHAPE, ranks[0], ranks[0])
    cases.check(out, SHAPE, mine, hidden, K[process], V[process], written)
    # What one rank alone would give is far from the answer, so the sum went over the wire.
    alone, *_ = cases.expected(SHAPE, [mine], [mine])
    assert np.abs(alone - hidden).max() > 0.1 * np.abs(hidden).max()
    print(f"process {process} of {processes} agrees")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
