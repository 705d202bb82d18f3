"""The simulated kernel from inside jitted programs, one device and several."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.lowering import simulate
from tests import cases, test_parallel

SHAPE = cases.Shape()


def _case(shape: cases.Shape = SHAPE) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    return cases.random_weights(shape, rng), cases.random_inputs(shape, rng)


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
        got = run(**(cases.stack(arguments) if stacked else arguments))
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(got, shape, inputs, hidden, K[0], V[0], written)

    @parameterized.product(lnc=(1, 2, None), stacked=(False, True))
    def test_agrees_with_the_oracle(self, lnc: int | None, stacked: bool) -> None:
        self._check(SHAPE, stacked, lnc=lnc)

    @parameterized.product(layers_per_launch=(1, 2, 3), stacked=(False, True))
    def test_layers_per_launch(self, layers_per_launch: int, stacked: bool) -> None:
        shape = cases.Shape(L=4)
        self._check(shape, stacked, layers_per_launch=layers_per_launch)

    def test_layers_per_launch_with_quantised_ones(self) -> None:
        kinds = ((None,) * 3, ("float8_e4m3",) * 3, ("float8_e5m2",) * 3, (None,) * 3)
        shape = cases.Shape(L=4, quantized=kinds, clamp_bound=0.5)
        for layers_per_launch in (1, 3):
            self._check(shape, layers_per_launch=layers_per_launch)

    @parameterized.parameters("bfloat16", "float16")
    def test_dtypes(self, dtype: str) -> None:
        self._check(dataclasses.replace(SHAPE, dtype=dtype))

    def test_no_update(self) -> None:
        self._check(cases.SHAPES["no_update"])

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

    def test_error_names_what_broke(self) -> None:
        """A rule of the machine that the kernel breaks reaches the user: e4m3fn needs trn3.

        The call itself would be refused, were this not left out.
        """
        shape = cases.Shape(quantized=(("float8_e4m3fn",) * 3,) * 2)
        with (
            mock.patch("jax_tkg.lowering.choice.check_target"),
            mock.patch.dict("os.environ", NEURON_PLATFORM_TARGET_OVERRIDE="trn2"),
            self.assertRaisesRegex(Exception, "float8_e4m3fn"),
        ):
            self._check(dataclasses.replace(shape, dtype="bfloat16"))


class ParallelTest(parameterized.TestCase):
    @parameterized.product(
        mesh_name=("tp2", "tp4", "dp2_tp2", "tp2_dp2"), on_chip=(True, False), lnc=(1, 2)
    )
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

    def test_too_few_threads(self) -> None:
        with (
            mock.patch.object(simulate.os, "cpu_count", return_value=2),
            mock.patch.object(simulate.jax, "devices", return_value=[None] * 2),
            self.assertRaisesRegex(ValueError, "implementation: .*jax_num_cpu_devices', 3"),
        ):
            simulate._check_threads(2)


if __name__ == "__main__":
    absltest.main()
