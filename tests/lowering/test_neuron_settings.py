"""What the environment says of the Neuron machine, and what follows for a call."""

from __future__ import annotations

import dataclasses
import os
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.call.arguments import Parameters
from jax_tkg.lowering import neuron_settings
from tests import cases

FLOAT8 = cases.Shape(L=2, dtype="bfloat16", quantized=((None,) * 3, ("float8_e4m3fn",) * 3))


def _arguments(shape: cases.Shape = FLOAT8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


def _environment(**variables: str) -> Any:
    return mock.patch.dict("os.environ", variables)


class LogicalCoresTest(parameterized.TestCase):
    @parameterized.parameters(("1", None, 1), ("2", None, 2), ("", None, 2), ("2", 1, 1))
    def test_argument_then_environment(self, value: str, lnc: int | None, expected: int) -> None:
        with _environment(NEURON_LOGICAL_NC_CONFIG=value):
            found = neuron_settings.logical_cores(Parameters(num_layers=1, lnc=lnc))
        self.assertEqual(found, expected)

    @parameterized.parameters("3", "two", "0")
    def test_bad_value(self, value: str) -> None:
        message = f"NEURON_LOGICAL_NC_CONFIG: expected 1 or 2 .*, got '{value}'"
        with _environment(NEURON_LOGICAL_NC_CONFIG=value):
            with self.assertRaisesRegex(ValueError, message):
                jax_tkg.explain(**_arguments(), **cases.options(FLOAT8), platform="neuron")
            # A number in the call leaves nothing to the environment.
            jax_tkg.explain(**_arguments(), **cases.options(FLOAT8), platform="neuron", lnc=1)


class NamingCoresTest(parameterized.TestCase):
    @parameterized.parameters((None, "1"), ("", "1"), ("2", "2"))
    def test_only_where_nothing_names_them(self, value: str | None, expected: str) -> None:
        name = neuron_settings.CORES_VARIABLE
        with _environment(**({} if value is None else {name: value})):
            if value is None:
                os.environ.pop(name, None)
            with neuron_settings.naming_cores(1):
                self.assertEqual(os.environ[name], expected)
            self.assertEqual(os.environ.get(name) or None, value or None)

    def test_after_an_error(self) -> None:
        with _environment(NEURON_LOGICAL_NC_CONFIG=""):
            with self.assertRaisesRegex(ValueError, "refused"), neuron_settings.naming_cores(2):
                raise ValueError("refused")
            self.assertFalse(os.environ.get(neuron_settings.CORES_VARIABLE))


class GridTest(parameterized.TestCase):
    """A launch has as many cores as the machine's logical cores, if the machine says how many."""

    SHAPE = cases.Shape(L=2)

    def _explain(self, stacked: bool, platform: str = "neuron", **options: Any) -> jax_tkg.Choice:
        arguments = _arguments(self.SHAPE)
        given = cases.stack(arguments) if stacked else arguments
        with mock.patch("jax_tkg.lowering.neuron.nki_problem", return_value=None):
            return jax_tkg.explain(
                **given, **cases.options(self.SHAPE), platform=platform, **options
            )

    @parameterized.product(cores=("1", "2"), stacked=(False, True))
    def test_other_grid_is_refused(self, cores: str, stacked: bool) -> None:
        other = 3 - int(cores)
        loops = "its layers loop on the device, which would hang"
        message = f"lnc: expected {cores}, which NEURON_LOGICAL_NC_CONFIG says .*got {other}"
        with _environment(NEURON_LOGICAL_NC_CONFIG=cores):
            with self.assertRaisesRegex(ValueError, message) as caught:
                self._explain(stacked, implementation="nki", lnc=other)
            choice = self._explain(stacked, lnc=other)
            self.assertEqual(choice.implementation, "reference")
            self.assertRegex(choice.reason, message)
        self.assertEqual(loops in str(caught.exception), stacked)

    @parameterized.parameters(("2", 2), ("2", None), ("1", 1), ("1", None), ("", 1), ("", 2))
    def test_same_grid_or_none(self, cores: str, lnc: int | None) -> None:
        with _environment(NEURON_LOGICAL_NC_CONFIG=cores):
            self.assertEqual(self._explain(True, lnc=lnc).implementation, "nki")

    def test_one_layer_in_a_launch_does_not_loop(self) -> None:
        with (
            _environment(NEURON_LOGICAL_NC_CONFIG="2"),
            self.assertRaisesRegex(ValueError, "lnc: expected 2.*got 1$"),
        ):
            self._explain(True, implementation="nki", lnc=1, layers_per_launch=1)

    def test_the_simulator_has_cores_of_its_own(self) -> None:
        with _environment(NEURON_LOGICAL_NC_CONFIG="2"):
            choice = self._explain(True, platform="cpu", implementation="simulate", lnc=1)
        self.assertEqual(choice.implementation, "simulate")


class TargetTest(parameterized.TestCase):
    @parameterized.parameters("simulate", "nki")
    def test_float8_that_the_machine_lacks(self, implementation: str) -> None:
        platform = "cpu" if implementation == "simulate" else "neuron"
        with (
            _environment(NEURON_PLATFORM_TARGET_OVERRIDE="trn2"),
            self.assertRaisesRegex(
                ValueError, "W_gates: expected float8_e4m3 .* on trn2.*got float8_e4m3fn"
            ),
        ):
            jax_tkg.explain(
                **_arguments(),
                **cases.options(FLOAT8),
                implementation=implementation,
                platform=platform,
            )

    def test_auto_falls_back(self) -> None:
        present = mock.patch("jax_tkg.lowering.neuron.nki_problem", return_value=None)
        call = {**_arguments(), **cases.options(FLOAT8)}
        with present, _environment(NEURON_PLATFORM_TARGET_OVERRIDE="trn2"):
            choice = jax_tkg.explain(**call, platform="neuron")
        self.assertEqual(choice.implementation, "reference")
        self.assertIn("W_gates: expected float8_e4m3", choice.reason)
        for target in ("trn3", "gen4", ""):
            with present, _environment(NEURON_PLATFORM_TARGET_OVERRIDE=target):
                choice = jax_tkg.explain(**call, platform="neuron")
            self.assertEqual(choice.implementation, "nki")

    @parameterized.product(
        kind=("float8_e4m3", "float8_e4m3fn", "float8_e5m2"), stacked=(False, True)
    )
    @pytest.mark.extended_except("0", "3")
    def test_simulates_the_oldest_machine_that_has_it(self, kind: str, stacked: bool) -> None:
        shape = dataclasses.replace(FLOAT8, quantized=((kind,) * 3,) * 2)
        arguments = _arguments(shape)
        given = cases.stack(arguments) if stacked else arguments
        with _environment(NEURON_PLATFORM_TARGET_OVERRIDE=""):
            expected = "trn3" if kind == "float8_e4m3fn" else "trn2"
            tensors = jax.tree.map(jnp.asarray, given)
            tensors["W_gates"] = tensors["W_gates"] if stacked else tuple(tensors["W_gates"])
            self.assertEqual(neuron_settings.simulated_target(tensors), expected)
            got = jax_tkg.transformer_tkg(
                **given, **cases.options(shape), implementation="simulate"
            )
        hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
        cases.check(got, shape, arguments, hidden, K[0], V[0], written)


if __name__ == "__main__":
    absltest.main()
