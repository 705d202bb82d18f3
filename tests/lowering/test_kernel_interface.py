"""A kernel takes what its function names, and refuses everything else by name."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.operand_table import OPERANDS
from jax_tkg.kernels.transformer import transformer_tkg as kernel
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, Launch, parameters_of
from jax_tkg.lowering.nkilib_kernel import interface
from jax_tkg.lowering.nkilib_release import NEWEST
from tests import cases


def _operands(**arrays: Any) -> Operands:
    return Operands(**{**dict.fromkeys(row.name for row in OPERANDS), **arrays})


OTHER_OPTIONS = {
    "softmax_scale": 0.1,
    "attention_softcap": 30.0,
    "activation": "gelu",
    "context_parallel": 2,
}

EXPERT_OPTIONS = {
    "activation_limit": 3.0,
    "activation_alpha": 1.0,
    "experts_per_token": 2,
    "routing": "sigmoid_topk",
    "normalize_expert_weights": True,
    "routed_scale": 2.0,
}


class KernelInterfaceTest(parameterized.TestCase):
    def test_parameters_are_those_of_the_function(self) -> None:
        function = inspect.signature(getattr(kernel, "__wrapped__", kernel))
        self.assertEqual(parameters_of("jax_tkg.kernels.transformer"), tuple(function.parameters))

    def test_every_parameter_has_a_value(self) -> None:
        launch = Launch(Parameters(3, eps=1e-5), ((0, 1),), 0, 2, stacked_caches=True)
        static = MEGAKERNEL.static_arguments(launch)
        self.assertCountEqual(
            [*static, *MEGAKERNEL.tensors], parameters_of("jax_tkg.kernels.transformer")
        )
        self.assertEqual((static["eps"], static["num_layers"]), (1e-5, 2))

    def test_the_kernel_takes_every_operand_and_option(self) -> None:
        everything = _operands(**{row.name: np.zeros(1) for row in OPERANDS})
        options = {**OTHER_OPTIONS, **EXPERT_OPTIONS}
        MEGAKERNEL.check_supported(everything, Parameters(1, eps=1e-3, clamp_bound=2.0, **options))

    @parameterized.parameters(*(row.name for row in OPERANDS if row.needs_experts), *EXPERT_OPTIONS)
    def test_nkilib_refuses_experts(self, option: str) -> None:
        operands, parameters = _operands(), Parameters(1)
        if option in EXPERT_OPTIONS:
            parameters = Parameters(1, **{option: EXPERT_OPTIONS[option]})
        else:
            operands = _operands(**{option: (np.zeros(1),)})
        with self.assertRaisesRegex(ValueError, f"^{option}: .*, which does not take it"):
            interface(NEWEST, _operands()).check_supported(operands, parameters)

    @parameterized.parameters(*cases.LAYER_OPTIONS, *OTHER_OPTIONS)
    def test_nkilib_refuses_options_of_a_layer(self, option: str) -> None:
        operands, parameters = _operands(), Parameters(1)
        if option in OTHER_OPTIONS:
            parameters = Parameters(1, **{option: OTHER_OPTIONS[option]})
        else:
            operands = _operands(**{option: (np.zeros(1),)})
        with self.assertRaisesRegex(ValueError, f"^{option}: expected .*, which does not take it"):
            interface(NEWEST, _operands()).check_supported(operands, parameters)

    def test_an_operand_that_is_not_named_is_refused(self) -> None:
        without = dataclasses.replace(
            MEGAKERNEL, tensors=tuple(n for n in MEGAKERNEL.tensors if n != "W_up_scales")
        )
        without.check_supported(_operands(X=np.zeros(1)), Parameters(1))
        with self.assertRaisesRegex(
            ValueError, "W_up_scales: expected None for the Neuron kernel, which does not take it"
        ):
            without.check_supported(_operands(W_up_scales=(np.zeros(1),)), Parameters(1))

    def test_an_arithmetic_option_that_is_not_named_is_refused(self) -> None:
        without = dataclasses.replace(MEGAKERNEL, options=("eps",))
        without.check_supported(_operands(), Parameters(1, sbuf_residual_and_cc=True))
        with self.assertRaisesRegex(
            ValueError, "clamp_bound: expected 0.0 for the Neuron kernel, .* got 3.0"
        ):
            without.check_supported(_operands(), Parameters(1, clamp_bound=3.0))

    def test_no_such_function(self) -> None:
        with self.assertRaisesRegex(ValueError, "expected a function transformer_tkg, got none"):
            parameters_of("jax_tkg.masks")


if __name__ == "__main__":
    absltest.main()
