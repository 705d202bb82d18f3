"""What to confirm on a Trainium machine, step by step; without Neuron it says so and ends.

    python -m benchmarks.neuron_checklist --standalone    # the kernel alone, without JAX's devices
    python -m benchmarks.neuron_checklist
    python -m benchmarks.neuron_checklist --implementation simulate    # the steps, on a CPU

Every step says what it expects and, where that is not what came, what to do. Results are compared
with the jax.numpy reference on the CPU. A step that fails does not stop the ones after it. All
steps run with each of the ways in which the installed NKI reads a kernel (it parses or traces it);
those whose layers loop on the device come last.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_tkg
from benchmarks import kernel_alone
from jax_tkg import caches, masks, rope, sharding
from jax_tkg.installed_nki import FRONT_END_VARIABLE, find_nki, front_ends, nki_problem

B, S, H, I, d, q, k, L, S_MAX = 2, 2, 256, 256, 64, 4, 2, 2, 64  # noqa: E741
TOLERANCE = 0.025
"""Largest error over the largest value: bfloat16 against another order of sums."""


class Check(Exception):
    """What a step expected did not come."""


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise Check(message)


def _arguments(seed: int, heads: int = q, kv_heads: int = k) -> dict[str, Any]:
    """A call's arguments in bfloat16, caches of random numbers, positions in the middle."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / shape[0] ** 0.5, jnp.bfloat16)

    lengths = jnp.asarray(rng.integers(8, S_MAX - 8, B), jnp.int32)
    positions = lengths[:, None] + jnp.arange(S)
    cos, sin = rope.rope_tables(positions, d)
    return {
        "X": jnp.asarray(rng.uniform(-1, 1, (B, S, H)), jnp.bfloat16),
        "W_qkvs": [normal(H, (heads + 2 * kv_heads) * d) for _ in range(L)],
        "W_outs": [normal(heads * d, H) for _ in range(L)],
        "W_gates": [normal(H, I) for _ in range(L)],
        "W_ups": [normal(H, I) for _ in range(L)],
        "W_downs": [normal(I, H) for _ in range(L)],
        "W_gamma_qkvs": [jnp.ones((1, H), jnp.bfloat16)] * L,
        "W_gamma_mlps": [jnp.ones((1, H), jnp.bfloat16)] * L,
        "K_caches": [normal(B, kv_heads, d, S_MAX) for _ in range(L)],
        "V_caches": [normal(B, kv_heads, S_MAX, d) for _ in range(L)],
        "RoPE_cos": cos,
        "RoPE_sin": sin,
        "mask_cache": masks.cache_mask(lengths, S_MAX, heads, S),
        "mask_active": masks.active_mask(S, B, heads),
        "position_ids": lengths[:, None],
    }


def _stacked(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same with a layer axis in place of lists."""
    return {
        name: jnp.stack(value) if isinstance(value, list | tuple) else value
        for name, value in arguments.items()
    }


def _call(implementation: str, **options: Any) -> Callable[..., Any]:
    return functools.partial(
        jax_tkg.transformer_tkg, num_layers=L, implementation=implementation, **options
    )


def _reference(arguments: dict[str, Any]) -> Any:
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.jit(_call("reference"))(**jax.tree.map(np.asarray, arguments))


def _compare(got: Any, want: Any) -> str:
    worst = 0.0
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        wide = np.asarray(other, np.float32)
        error = np.abs(np.asarray(one, np.float32) - wide).max() / np.abs(wide).max()
        worst = max(worst, float(error))
    _expect(np.abs(np.asarray(got[0], np.float32)).max() > 0, "the hidden states are all zero")
    _expect(worst <= TOLERANCE, f"expected an error of at most {TOLERANCE}, got {worst:.4f}")
    return f"largest error {worst:.4f}"


def installed(implementation: str) -> str:
    """nki (0.6 or later), libneuronxla and neuronx-cc are AWS's own, not placeholders."""
    if implementation == "simulate":
        return "not needed to simulate"
    problem = nki_problem()
    _expect(problem is None, str(problem))
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("nki", "libneuronxla", "neuronx-cc")
    ]
    return ", ".join([*versions, f"jax {jax.__version__}"])


def one_call(implementation: str, **options: Any) -> str:
    """`nki.jit` accepts the tracers of a lowering rule, and one call agrees with the reference."""
    arguments = _arguments(0)
    got = jax.jit(_call(implementation, **options))(**arguments)
    return _compare(got, _reference(arguments))


def layer_loop(implementation: str) -> str:
    """Stacked weights: the layers loop on the device (`nl.fori_loop`), with dynamic DMA offsets."""
    arguments = _stacked(_arguments(6))
    got = jax.jit(_call(implementation))(**arguments)
    return _compare(got, _reference(arguments))


def head(implementation: str) -> str:
    """Final norm, head and candidates in the launch; a column of NaN, as padding, is none."""
    arguments = _arguments(7)
    rng = np.random.default_rng(7)
    W_head = rng.normal(0, H**-0.5, (H, 301))
    W_head[:, 300] = np.nan
    arguments["W_gamma_final"] = jnp.asarray(rng.uniform(0.5, 1.5, (1, H)), jnp.bfloat16)
    arguments["W_head"] = jnp.asarray(W_head, jnp.bfloat16)
    got = jax.jit(_call(implementation, candidates_per_token=3))(**arguments)
    with jax.default_device(jax.devices("cpu")[0]):
        on_host = jax.tree.map(np.asarray, arguments)
        want = jax.jit(_call("reference", candidates_per_token=3))(**on_host)
    _expect(bool((np.asarray(got.candidate_ids) < 300).all()), "the column of NaN was chosen")
    return _compare((*got[:3], got.candidate_logits), (*want[:3], want.candidate_logits))


def layers_per_launch(implementation: str) -> str:
    """Two launches give what one gives: what to fall back to where a large kernel compiles long."""
    return one_call(implementation, layers_per_launch=1)


def one_core(implementation: str) -> str:
    """lnc=1. On a machine with NEURON_LOGICAL_NC_CONFIG=2 this is expected to be refused."""
    return one_call(implementation, lnc=1)


def skipped_sequence(implementation: str) -> str:
    """The skip marker writes nothing: the runtime skips an out-of-bounds DMA and goes on."""
    arguments = _arguments(1)
    arguments["position_ids"] = jnp.asarray([[2**32 - 1], [5]], jnp.uint32)
    got = jax.jit(_call(implementation))(**arguments)
    for name in ("K_caches", "V_caches"):
        for before, after in zip(arguments[name], getattr(got, name), strict=True):
            same = np.asarray(before[0]).tobytes() == np.asarray(after[0]).tobytes()
            _expect(same, f"{name}: the skipped sequence's cache changed")
    return _compare(got, _reference(arguments))


def donation(implementation: str) -> str:
    """Donated caches are updated where they are: the donation and the call's aliases agree."""
    arguments = _arguments(2)
    given = {name: arguments.pop(name) for name in ("K_caches", "V_caches")}
    want = _reference({**arguments, **given})
    step = jax.jit(lambda a, c: _call(implementation)(**a, **c), donate_argnums=1)
    got = step(arguments, given)
    deleted = all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    _expect(deleted, "a donated cache was not taken: expected every one to be deleted")
    return _compare(got, want)


def loop(implementation: str) -> str:
    """The call in a loop on the device, so that the compiled kernel is used more than once."""
    arguments = _arguments(3)
    carried = {name: arguments.pop(name) for name in ("X", "K_caches", "V_caches")}

    def steps(implementation: str, arguments: Any, carried: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            out = _call(implementation)(**arguments, **carry)
            # A power of two: exact, so that the error stays that of the calls.
            return {"X": out.hidden / 8, "K_caches": out.K_caches, "V_caches": out.V_caches}

        # Each step's rounding grows in the next; after two it is still well within the tolerance.
        return jax.lax.fori_loop(0, 2, body, carried)

    got = jax.jit(functools.partial(steps, implementation))(arguments, carried)
    with jax.default_device(jax.devices("cpu")[0]):
        host = jax.tree.map(np.asarray, (arguments, carried))
        want = jax.jit(functools.partial(steps, "reference"))(*host)
    return _compare(tuple(got[name] for name in carried), tuple(want[name] for name in carried))


def twice_in_a_program(implementation: str) -> str:
    """Two calls in one program: kernels that meet between cores have failed so (SDK issue 1298)."""
    arguments = _arguments(4)

    def both(implementation: str, arguments: Any) -> Any:
        first = _call(implementation)(**arguments)
        return _call(implementation)(**{**arguments, "X": first.hidden})

    got = jax.jit(functools.partial(both, implementation))(arguments)
    with jax.default_device(jax.devices("cpu")[0]):
        want = jax.jit(functools.partial(both, "reference"))(jax.tree.map(np.asarray, arguments))
    return _compare(got, want)


def _parallel(implementation: str, on_chip: bool, stacked: bool = False) -> str:
    devices = jax.devices()
    _expect(len(devices) >= 4, f"expected 4 devices, got {len(devices)}: skip this step")
    mesh = jax.sharding.Mesh(np.asarray(devices[:4]).reshape(2, 2), ("dp", "tp"))
    specs = sharding.partition_specs("tp", "dp", stacked=stacked)
    whole = _arguments(5)
    K_caches, V_caches = caches.allocate_caches(L, B=B, k=k, d=d, S_max=S_MAX, dtype=jnp.bfloat16)
    whole["K_caches"], whole["V_caches"] = K_caches, V_caches
    whole["mask_cache"] = jnp.zeros_like(whole["mask_cache"])
    if stacked:
        whole = _stacked(whole)

    def run(implementation: str, mesh: Any, whole: Any) -> Any:
        step = jax.shard_map(
            lambda a: tuple(
                _call(implementation, axis_name="tp", sbuf_residual_and_cc=on_chip)(**a)
            ),
            mesh=mesh,
            in_specs=({name: getattr(specs, name) for name in whole},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
        return jax.jit(step)(whole)

    got = run(implementation, mesh, whole)
    host = jax.tree.map(np.asarray, whole)
    # Ranks sum in every layer, so the reference too runs on four devices: the host's.
    host_devices = np.asarray(jax.devices("cpu")[:4]).reshape(2, 2)
    want = run("reference", jax.sharding.Mesh(host_devices, ("dp", "tp")), host)
    return _compare(got, want)


def _alone(ranks: int) -> str:
    whole = _arguments(7)
    got = kernel_alone.run(whole, L, ranks)
    specs = sharding.partition_specs("tp")
    step = jax.shard_map(
        lambda a: tuple(_call("reference", axis_name="tp")(**a)),
        mesh=jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:ranks]), ("tp",)),
        in_specs=({name: getattr(specs, name) for name in whole},),
        out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
    )
    return _compare(got, jax.jit(step)(whole))


def alone_on_one_rank(implementation: str) -> str:
    """The kernel compiles and runs without JAX: NKI's own call on NumPy arrays."""
    del implementation
    return _alone(1)


def alone_on_two_ranks(implementation: str) -> str:
    """The same on two ranks, with all-reduces: a list for each argument, with an array a rank."""
    del implementation
    return _alone(2)


def groups_through_hbm(implementation: str) -> str:
    """Replica groups are numbered as the mesh is: dp x tp, all-reduce through HBM."""
    return _parallel(implementation, on_chip=False)


def groups_on_chip(implementation: str) -> str:
    """The same from SBUF to SBUF; at lnc=2 it has failed to compile for some (SDK issue 1305)."""
    return _parallel(implementation, on_chip=True)


def groups_in_a_layer_loop(implementation: str) -> str:
    """All-reduces inside the loop over layers: NKI's documentation is silent about that."""
    return _parallel(implementation, on_chip=False, stacked=True)


Steps = tuple[tuple[Callable[[str], str], str], ...]

STEPS: Steps = (
    (installed, "install AWS's packages as BUILD.md says, and start again"),
    (one_call, "run it with implementation='reference'; report the compiler's message"),
    (layers_per_launch, "if one_call passed, compare the two programs' custom calls"),
    (one_core, "only where NEURON_LOGICAL_NC_CONFIG is 1"),
    (skipped_sequence, "never pass the marker; write to a spare slot and report"),
    (head, "pass candidates=False to Decoder and RunningBatch; report what came"),
    (donation, "expect a copy of the caches in every step until this is understood"),
    (loop, "call the step from Python instead of a loop on the device"),
    (twice_in_a_program, "put each call into a program of its own"),
    (groups_through_hbm, "print jax_tkg.dry_run's replica groups beside those of lax.psum"),
    (groups_on_chip, "use sbuf_residual_and_cc=False, or lnc=1"),
    (layer_loop, "pass lists of arrays, or layers_per_launch=1; report the compiler's message"),
    (groups_in_a_layer_loop, "under tensor parallelism pass lists, or layers_per_launch=1"),
)
"""Each step and what to do where it fails. Layers loop on the device in the last two."""

STANDALONE_STEPS: Steps = (
    (installed, "install AWS's packages as BUILD.md says, and start again"),
    (alone_on_one_rank, "report the compiler's message: JAX has no part in it"),
    (alone_on_two_ranks, "if one rank passed, it is the all-reduce: see SDK issue 1305"),
)


def main(arguments: Sequence[str]) -> int:
    """Runs all steps; 1 where one failed."""
    # argparse, because on hardware this is to run with nothing installed but the package itself.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--implementation",
        choices=("nki", "simulate"),
        default="nki",
        help="what the steps run: the kernel, or its simulation",
    )
    parser.add_argument(
        "--standalone",
        action="store_true",
        help="only call the kernel on NumPy arrays, in a process that leaves the devices to NKI",
    )
    chosen = parser.parse_args(arguments)
    implementation = chosen.implementation
    if chosen.standalone and implementation == "simulate":
        parser.error("--standalone calls the kernel through NKI: leave --implementation out")
    if chosen.standalone:
        if nki_problem() is not None:
            print(f"Nothing to check: {nki_problem()}.")
            return 0
        # The devices are NKI's in this process.
        jax.config.update("jax_platforms", "cpu")
        return _run_with_front_ends(STANDALONE_STEPS, implementation)
    if implementation == "nki" and jax.default_backend() != "neuron":
        print(
            f"No Neuron device here (JAX's platform is {jax.default_backend()}): nothing to check. "
            "--implementation simulate runs the steps on a CPU."
        )
        return 0
    return _run_with_front_ends(STEPS, implementation)


def _run_with_front_ends(steps: Steps, implementation: str) -> int:
    """Runs all steps with each front end; the simulator has none."""
    if implementation == "simulate":
        return _run(steps, implementation)
    failed = 0
    nki = find_nki()
    # Without nki the first step says so.
    for name in (None,) if nki is None else front_ends(nki.version):
        os.environ.pop(FRONT_END_VARIABLE, None)
        if name is not None:
            os.environ[FRONT_END_VARIABLE] = name
        # Programs that hold kernels of the other front end.
        jax.clear_caches()
        print(f"{FRONT_END_VARIABLE}={name or '(not set)'}", flush=True)
        failed |= _run(steps, implementation)
    return failed


def _run(steps: Steps, implementation: str) -> int:
    failed = 0
    for number, (step, remedy) in enumerate(steps, 1):
        print(f"{number:2}. {step.__name__}: {step.__doc__}", flush=True)
        try:
            print(f"    ok: {step(implementation)}", flush=True)
        except Check as failure:
            failed += 1
            print(f"    FAILED: {failure}\n    Then: {remedy}", flush=True)
        except Exception:
            # A step may fail in the compiler or the runtime; the next ones are still of interest.
            failed += 1
            last = traceback.format_exc().strip().splitlines()[-1]
            print(f"    FAILED: {last}\n    Then: {remedy}", flush=True)
    print(f"{len(steps) - failed} of {len(steps)} steps passed")
    return 1 if failed else 0


def _prepare() -> None:
    # The reference and the simulator run on four host devices.
    jax.config.update("jax_num_cpu_devices", 4)


if __name__ == "__main__":
    _prepare()
    sys.exit(main(sys.argv[1:]))
