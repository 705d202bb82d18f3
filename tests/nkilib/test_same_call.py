"""One call, three implementations: the reference, our kernel and AWS's, both kernels simulated."""

import dataclasses
import functools
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import simulator
from jax_tkg.lowering import kernel_entry, nkilib
from jax_tkg.lowering.launches import run_launches
from tests import cases, parallel_cases, test_parallel
from tests.kernels import launch
from tests.nkilib import library

library.require()

SHAPES = {
    "one_token": cases.Shape(B=2, S=1, q=4, k=1, H=512, I=256, S_ctx=256, S_max=300, unified=True),
    "eight_tokens": cases.Shape(
        B=1, S=8, q=4, k=1, d=128, H=256, I=384, S_ctx=256, S_max=256, unified=True
    ),
    "small_heads": cases.Shape(
        B=4, S=2, q=2, k=1, H=512, I=128, S_ctx=512, S_max=600, unified=True
    ),
    "no_update": cases.Shape(
        B=2,
        S=3,
        q=1,
        k=1,
        d=128,
        H=512,
        I=256,
        S_ctx=256,
        S_max=256,
        positions="none",
        unified=True,
    ),
    "bfloat16": cases.Shape(
        B=2,
        S=1,
        q=4,
        k=1,
        d=128,
        H=512,
        I=512,
        S_ctx=256,
        S_max=300,
        L=4,
        dtype="bfloat16",
        unified=True,
    ),
    "float8": cases.Shape(
        B=2,
        S=1,
        q=4,
        k=1,
        d=128,
        H=512,
        I=512,
        S_ctx=256,
        S_max=300,
        L=4,
        dtype="bfloat16",
        unified=True,
        quantized=((None,) * 3, ("float8_e4m3",) * 3, ("float8_e4m3",) * 3, (None,) * 3),
        scale_rows=1,
    ),
}


def _within_limits(shape, arguments, rng):
    """Positions inside the caches and a key for every query, which AWS's kernel needs."""
    mask = rng.random((shape.S_ctx, shape.B, shape.q, shape.S)) < 0.7
    for key in range(shape.S):
        mask[shape.S_ctx - shape.S + key, :, :, key] = True
    positions = arguments["position_ids"]
    if positions is not None:
        positions = rng.integers(0, shape.S_max - shape.S + 1, (shape.B, 1), dtype=np.int32)
    return {**arguments, "mask_cache": mask, "mask_active": None, "position_ids": positions}


def _arguments(shape, seed=0):
    rng = np.random.default_rng(seed)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    return _within_limits(shape, arguments, rng)


class SameCallTest(parameterized.TestCase):
    @parameterized.product(
        name=tuple(SHAPES), lnc=(1, 2), implementation=("reference", "simulate", "nkilib")
    )
    def test_agrees_with_the_oracle(self, name, lnc, implementation):
        shape = SHAPES[name]
        arguments = _arguments(shape)
        call = functools.partial(
            jax_tkg.transformer_tkg, **cases.options(shape), lnc=lnc, implementation=implementation
        )
        out = jax.jit(call)(**arguments)
        hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
        cases.check(out, shape, arguments, hidden, K[0], V[0], written)

    @parameterized.parameters(1, 2)
    def test_masks_apart(self, lnc):
        """The mask of the new keys comes on its own: the kernel gets both as one."""
        shape = dataclasses.replace(SHAPES["one_token"], S=2, S_max=520, unified=False)
        arguments = _arguments(shape)
        out = jax_tkg.transformer_tkg(
            **arguments, **cases.options(shape), implementation="nkilib", lnc=lnc
        )
        hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
        cases.check(out, shape, arguments, hidden, K[0], V[0], written)

    def test_several_launches(self):
        shape = SHAPES["float8"]
        arguments = _arguments(shape)
        out = jax_tkg.transformer_tkg(
            **arguments, **cases.options(shape), implementation="nkilib", layers_per_launch=1
        )
        hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
        cases.check(out, shape, arguments, hidden, K[0], V[0], written)

    @parameterized.product(implementation=("simulate", "nkilib"), lnc=(1, 2))
    def test_ranks(self, implementation, lnc):
        shape = dataclasses.replace(SHAPES["one_token"], q=2)
        ranks = parallel_cases.random_ranks(shape, 1, 4, 0)
        rng = np.random.default_rng(1)
        shared = _within_limits(shape, ranks[0][0], rng)
        common = {name: shared[name] for name in ("mask_cache", "mask_active", "position_ids")}
        ranks = [[{**rank, **common} for rank in ranks[0]]]
        specs = jax_tkg.sharding.partition_specs("tp", None)
        out = test_parallel._sharded_call(
            test_parallel._mesh((4,), ("tp",)),
            parallel_cases.join(ranks, specs, "tp", None),
            specs,
            **cases.options(shape),
            axis_name="tp",
            implementation=implementation,
            lnc=lnc,
        )
        parallel_cases.check(out, shape, ranks)

    def test_generated_entry(self):
        """The file that is compiled on Neuron, executed."""
        shape = SHAPES["float8"]
        arguments = _arguments(shape)
        operands, parameters = launch.canonical(arguments, **cases.options(shape))
        kernel = nkilib.NKILIB.kernel(operands)

        def simulate(tensors, one):
            entry = kernel_entry.load_entry(kernel_entry.entry_source(tensors, one, kernel))
            _, values = kernel_entry.flatten(jax.tree.map(np.asarray, tensors), kernel)
            hidden, *caches = simulator.run(entry, [tuple(values)]).outputs[0]
            return hidden, tuple(caches[: shape.L]), tuple(caches[shape.L :])

        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict("os.environ", {kernel_entry.DIRECTORY_VARIABLE: folder}),
        ):
            out = jax_tkg.TransformerTkgOutput(
                *run_launches(operands, parameters, simulate, kernel)
            )
        hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
        cases.check(out, shape, arguments, hidden, K[0], V[0], written)


if __name__ == "__main__":
    absltest.main()
