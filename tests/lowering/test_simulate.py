"""The simulated kernel from inside jitted programs, one device and several."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import simulator
from tests import cases, test_parallel

SHAPE = cases.Shape()


def _case(shape: cases.Shape = SHAPE) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    return cases.random_weights(shape, rng), cases.random_inputs(shape, rng)


@pytest.mark.thorough
class OneDeviceTest(parameterized.TestCase):
    def _check(self, shape: cases.Shape, stacked: bool = False, **options: Any) -> None:
        weights, inputs = _case(shape)
        arguments = {**weights, **inputs}
        run = jax.jit(
            functools.partial(
                jax_tkg.transformer_tkg,
                **cases.options(shape),
                implementation="simulate",
                **options,
            )
        )
        got = run(**(cases.stack(arguments, shape.layer_kinds) if stacked else arguments))
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(got, shape, inputs, hidden, K[0], V[0], written)

    @parameterized.product(lnc=(1, 2, None), stacked=(False, True))
    @pytest.mark.extended_except("1", "2", "4")
    def test_agrees_with_the_oracle(self, lnc: int | None, stacked: bool) -> None:
        self._check(SHAPE, stacked, lnc=lnc)

    @parameterized.product(layers_per_launch=(1, 2, 3), stacked=(False, True))
    @pytest.mark.extended_except("1", "2")
    def test_layers_per_launch(self, layers_per_launch: int, stacked: bool) -> None:
        shape = cases.Shape(L=4)
        self._check(shape, stacked, layers_per_launch=layers_per_launch)

    def test_layers_per_launch_with_quantized_ones(self) -> None:
        kinds = ((None,) * 3, ("float8_e4m3",) * 3, ("float8_e5m2",) * 3, (None,) * 3)
        shape = cases.Shape(L=4, quantized=kinds, clamp_bound=0.5)
        for layers_per_launch in (1, 3):
            self._check(shape, layers_per_launch=layers_per_launch)

    @parameterized.product(stacked=(False, True))
    @pytest.mark.extended_except("1")
    def test_every_option(self, stacked: bool) -> None:
        """In a launch of two layers; or in one that has no option and one that has all of them."""
        shape = cases.SHAPES["every_option"]
        if stacked:
            self._check(dataclasses.replace(shape, bare_layers=()), stacked)
        else:
            self._check(shape, layers_per_launch=1)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("0")
    def test_float8_caches(self, stacked: bool) -> None:
        self._check(cases.SHAPES["float8_caches"], stacked, layers_per_launch=1)

    @parameterized.product(layers_per_launch=(1, 4, None), stacked=(False, True))
    @pytest.mark.extended_except("1", "2")
    def test_kinds(self, layers_per_launch: int | None, stacked: bool) -> None:
        """Launches of one kind alone, of which other kinds' stacks are kept, and of a loop."""
        shape = dataclasses.replace(cases.KINDS, layer_kinds=(0, 1, 0, 1, 0))
        self._check(shape, stacked, layers_per_launch=layers_per_launch)

    def test_experts(self) -> None:
        """Launches of one layer: dense ones have none of the experts' tensors."""
        shape = dataclasses.replace(cases.EXPERTS, L=3, dense_layers=(1,), I_shared=24)
        self._check(shape, layers_per_launch=1)

    def test_experts_split_by_expert(self) -> None:
        """Each rank learns in the traced program which experts are its own."""
        shape = dataclasses.replace(cases.EXPERTS, L=1, E_held=4, S_ctx=4, S_max=8)
        weights, inputs = _case(dataclasses.replace(shape, E_held=8))
        specs = jax_tkg.sharding.partition_specs("tp", expert_split="expert")
        whole = {**weights, **inputs}
        heads = ("W_qkvs", "W_outs", "K_caches", "V_caches", "mask_cache", "mask_active")
        alike = dict.fromkeys(heads, jax.sharding.PartitionSpec())
        in_specs = {name: alike.get(name, getattr(specs, name)) for name in whole}

        def hidden(implementation: str) -> Any:
            def run(arguments: Any) -> jax.Array:
                return jax_tkg.transformer_tkg(
                    **arguments,
                    **cases.options(shape),
                    axis_name="tp",
                    implementation=implementation,
                ).hidden

            mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
            sharded = jax.shard_map(
                run, mesh=mesh, in_specs=(in_specs,), out_specs=specs.hidden, check_vma=False
            )
            return np.asarray(jax.jit(sharded)(whole))

        want = hidden("reference")
        self.assertLess(np.abs(hidden("simulate") - want).max(), 1e-4 * np.abs(want).max())

    def test_kinds_in_one_stack(self) -> None:
        shape = cases.Shape(L=4, layer_kinds=(1, 0, 1, 0), kinds=((20, 24, True, "first"),))
        weights, inputs = _case(shape)
        inputs["position_ids"] = inputs["position_ids"][0]
        arguments = cases.stack({**weights, **inputs})
        call = functools.partial(jax_tkg.transformer_tkg, **arguments, **cases.options(shape))
        got, want = (call(implementation=name) for name in ("simulate", "reference"))
        jax.tree.map(lambda *a: np.testing.assert_allclose(*a, rtol=1e-4, atol=1e-4), got, want)

    @parameterized.parameters("bfloat16", "float16")
    @pytest.mark.extended_except("0")
    def test_dtypes(self, dtype: str) -> None:
        self._check(dataclasses.replace(SHAPE, dtype=dtype))

    def test_no_update(self) -> None:
        self._check(cases.SHAPES["no_update"])

    @pytest.mark.extended
    def test_in_a_loop(self) -> None:
        weights, inputs = _case()
        arguments = jax.tree.map(jnp.asarray, {**weights, **inputs})

        def steps(implementation: str) -> Any:
            def body(_: Any, carry: Any) -> Any:
                out = jax_tkg.transformer_tkg(
                    **{**arguments, **carry},
                    **cases.options(SHAPE),
                    implementation=implementation,
                )
                return {
                    "X": jnp.tanh(out.hidden),
                    "K_caches": out.K_caches,
                    "V_caches": out.V_caches,
                }

            start = {name: arguments[name] for name in ("X", "K_caches", "V_caches")}
            return jax.jit(lambda: jax.lax.fori_loop(0, 3, body, start))()

        got, want = steps("simulate"), steps("reference")
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
class ParallelTest(parameterized.TestCase):
    @parameterized.product(
        mesh_name=("tp2", "tp4", "dp2_tp2", "tp2_dp2"), on_chip=(True, False), lnc=(1, 2)
    )
    @pytest.mark.extended_except("1", "6", "9", "14")
    def test_ranks_exchange_their_data(self, mesh_name: str, on_chip: bool, lnc: int) -> None:
        test_parallel.ParallelTest._run(
            self,  # type: ignore[arg-type]
            test_parallel.SHAPE,
            mesh_name,
            on_chip,
            axis_name="tp",
            implementation="simulate",
            sbuf_residual_and_cc=on_chip,
            lnc=lnc,
        )

    def test_ranks_with_every_option(self) -> None:
        """The output's bias is added once, not by each rank."""
        test_parallel.ParallelTest._run(
            self,  # type: ignore[arg-type]
            dataclasses.replace(test_parallel.SHAPE, q=4, k=2, **cases.EVERY_OPTION),
            "dp2_tp2",
            axis_name="tp",
            implementation="simulate",
        )

    @parameterized.parameters(1, 2)
    @pytest.mark.extended_except("0")
    def test_one_cpu_and_no_device_to_spare(self, ranks: int) -> None:
        worker = pathlib.Path(__file__).with_name("one_cpu_worker.py")
        done = subprocess.run(
            [sys.executable, str(worker), str(ranks)],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"{ranks} ranks on one CPU agree with the oracle", done.stdout)


class ErrorsTest(parameterized.TestCase):
    """A rule of the machine that the kernel breaks reaches the user: e4m3fn needs trn3.

    The call itself would be refused, were the check of the target not left out.
    """

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch("jax_tkg.lowering.kernel_limits.check_target"))
        self.enterContext(mock.patch.dict("os.environ", NEURON_PLATFORM_TARGET_OVERRIDE="trn2"))
        # Compiled programs keep their target: a test before may have run this call for trn3.
        jax.clear_caches()

    def _call(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        shape = dataclasses.replace(
            SHAPE, dtype="bfloat16", quantized=(("float8_e4m3fn",) * 3,) * 2
        )
        weights, inputs = _case(shape)
        call = functools.partial(
            jax_tkg.transformer_tkg, **cases.options(shape), implementation="simulate", **options
        )
        return call, {**weights, **inputs}

    def test_in_a_jitted_program_the_last_line_names_it(self) -> None:
        call, arguments = self._call()
        with self.assertRaises(jax.errors.JaxRuntimeError) as caught:
            jax.block_until_ready(jax.jit(call)(**arguments))
        text = str(caught.exception).strip()
        *frames, last = text.splitlines()
        # With the kernel's line.
        self.assertRegex(last, r"^NkiValidationError: .*float8_e4m3fn.*/kernels/\w+\.py:\d+\)$")
        # The simulator's frames, deeper than the call of the host function, are left out.
        self.assertNotIn("/jax_tkg/simulator/", text)
        self.assertNotIn("/jax_tkg/kernels/", "\n".join(frames))

    def test_outside_of_one_it_is_the_simulators_own(self) -> None:
        call, arguments = self._call()
        with self.assertRaisesRegex(simulator.errors.NkiValidationError, "float8_e4m3fn"):
            call(**arguments)

    def test_on_several_ranks(self) -> None:
        call, arguments = self._call(axis_name="ranks")
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("ranks",))
        every = jax.sharding.PartitionSpec()
        run = jax.shard_map(
            lambda given: tuple(call(**given)),
            mesh=mesh,
            in_specs=every,
            out_specs=every,
            check_vma=False,
        )
        with self.assertRaises(jax.errors.JaxRuntimeError) as caught:
            jax.block_until_ready(jax.jit(run)(arguments))
        last = str(caught.exception).strip().splitlines()[-1]
        self.assertRegex(last, "^(PeerRankError: )?NkiValidationError: .*float8_e4m3fn")


if __name__ == "__main__":
    absltest.main()
