"""A program that calls the simulator, in a process of one CPU; started by test_simulate.

Usage: one_cpu_worker.py RANKS. There are as many CPU devices as ranks, so XLA's pool has no thread
to spare. The arguments are too large to be copied without one.
"""

from __future__ import annotations

import os
import pathlib
import sys

if hasattr(os, "sched_setaffinity"):
    # XLA counts the CPUs that the process may use when it starts.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import jax_tkg
import jax_tkg.sharding
from tests import cases, parallel_cases

SHAPE = cases.Shape(B=1, S=1, q=2, k=1, d=64, H=512, I=512, L=1)


def main(ranks: int) -> None:
    jax.config.update("jax_num_cpu_devices", ranks)
    assert len(jax.devices()) == ranks, jax.devices()
    rows = parallel_cases.random_ranks(SHAPE, 1, ranks, seed=0)
    specs = jax_tkg.sharding.partition_specs("tp")
    whole = parallel_cases.join(rows, specs, "tp", None)
    axis = "tp" if ranks > 1 else None

    def step(arguments: dict[str, object]) -> tuple:
        return tuple(
            jax_tkg.transformer_tkg(
                **arguments,  # type: ignore[arg-type]
                **cases.options(SHAPE),
                implementation="simulate",
                axis_name=axis,
            )
        )

    if ranks > 1:
        in_specs = {name: v if v is None else getattr(specs, name) for name, v in whole.items()}
        step = jax.shard_map(
            step,
            mesh=jax.sharding.Mesh(np.asarray(jax.devices()), ("tp",)),
            in_specs=(in_specs,),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
    out = jax_tkg.TransformerTkgOutput(*jax.jit(step)(whole))
    parallel_cases.check(out, SHAPE, rows)
    print(f"{ranks} ranks on one CPU agree with the oracle")


if __name__ == "__main__":
    main(int(sys.argv[1]))
