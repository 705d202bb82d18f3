"""The registry of implementations, and what chooses from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.call.options import IMPLEMENTATIONS
from jax_tkg.lowering import choice, registry
from jax_tkg.lowering.reference import REFERENCE
from tests import cases

SHAPE = cases.Shape(L=1)


def _call() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arguments = {**cases.random_weights(SHAPE, rng), **cases.random_inputs(SHAPE, rng)}
    return {**arguments, **cases.options(SHAPE)}


class RegistryTest(parameterized.TestCase):
    def test_names_are_those_of_the_argument(self) -> None:
        names = [implementation.name for implementation in registry.IMPLEMENTATIONS]
        self.assertCountEqual(("auto", *names), IMPLEMENTATIONS)
        self.assertLen(set(names), len(names))

    def test_automatic_ones_end_with_one_that_always_runs(self) -> None:
        *_, last = registry.AUTOMATIC
        self.assertEqual(last.platforms, ())
        self.assertIsNone(last.available("any"))

    @parameterized.parameters(*IMPLEMENTATIONS)
    def test_every_name_is_chosen_or_refused_by_name(self, name: str) -> None:
        for platform in ("cpu", "neuron", "cuda"):
            try:
                found = jax_tkg.explain(**_call(), implementation=name, platform=platform)
                self.assertIn(found.implementation, IMPLEMENTATIONS[1:])
            except ValueError as error:
                self.assertRegex(str(error), f"^[a-z_A-Z]+: expected .*'{name}'")


class OtherImplementationTest(absltest.TestCase):
    """An implementation that is put into the registry is chosen, lowered to and explained."""

    def _install(self, **changes: Any) -> None:
        other = dataclasses.replace(
            REFERENCE,
            name="reference",
            platforms=("cpu",),
            run=lambda operands, parameters, platform: REFERENCE.run(
                dataclasses.replace(operands, X=2 * operands.X), parameters, platform
            ),
            **changes,
        )
        automatic = (other, REFERENCE)
        self.enterContext(mock.patch.object(choice, "AUTOMATIC", automatic))
        everything = (other, *registry.IMPLEMENTATIONS[1:])
        self.enterContext(mock.patch.object(registry, "IMPLEMENTATIONS", everything))

    def _run(self) -> Any:
        given = _call()
        X = given.pop("X")
        call = functools.partial(jax_tkg.transformer_tkg, **given)
        return jax.jit(lambda x: call(x))(X).hidden

    def test_chosen(self) -> None:
        given = _call()
        X = 2 * given["X"]
        doubled = jax_tkg.transformer_tkg(**{**given, "X": X}, implementation="reference").hidden
        self._install()
        self.assertIn("cpu", jax_tkg.explain(**given).reason)
        np.testing.assert_array_equal(self._run(), doubled)

    def test_reasons_against_it(self) -> None:
        self._install(available=lambda platform: f"nothing for {platform} here")
        self.assertEqual(jax_tkg.explain(**_call()).reason, "nothing for cpu here")

    def test_limits(self) -> None:
        def check(*_: Any) -> None:
            raise ValueError("X: expected less, got more")

        self._install(check=check)
        self.assertIn("X: expected less, got more", jax_tkg.explain(**_call()).reason)


if __name__ == "__main__":
    absltest.main()
