"""Bad input: the exception's type, and a message with argument, expectation and actual value."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.call.operand_table import BY_NAME, OPERANDS
from jax_tkg.call.options import OPTIONS, canonical_options
from tests.call import bad_calls
from tests.call.bad_calls import SHAPE, Change, good, named

DEFAULT_OPTIONS = {option.name: option.default for option in OPTIONS}


def _only_options(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in DEFAULT_OPTIONS}


class BadInputTest(parameterized.TestCase):
    def _assert_message(
        self, error: type[Exception], change: Change, parts: list[str], jit: bool = False
    ) -> None:
        arguments = good()
        change(arguments)
        arrays = {name: value for name, value in arguments.items() if name not in DEFAULT_OPTIONS}
        static = {name: value for name, value in arguments.items() if name not in arrays}
        with self.assertRaises(error) as caught:
            if jit:
                jax.jit(lambda given: jax_tkg.transformer_tkg(**given, **static))(arrays)
            else:
                jax_tkg.transformer_tkg(**arguments)
        for part in parts:
            self.assertIn(part, str(caught.exception))

    def test_the_good_call_is_good(self) -> None:
        self.assertTrue(np.isfinite(jax_tkg.transformer_tkg(**good()).hidden).all())

    @parameterized.named_parameters(*named(bad_calls.SHAPES))
    def test_shape(self, change: Change, parts: list[str]) -> None:
        self._assert_message(ValueError, change, parts)

    @parameterized.named_parameters(*named(bad_calls.SHAPES))
    def test_shape_while_tracing(self, change: Change, parts: list[str]) -> None:
        self._assert_message(ValueError, change, parts, jit=True)

    @parameterized.named_parameters(*named(bad_calls.LIMITS))
    def test_limit(self, sizes: dict[str, int], parts: list[str]) -> None:
        arguments = good()
        letters = {**dataclasses.asdict(SHAPE), **sizes}
        for row in OPERANDS:
            value = arguments.get(row.name)
            if value is not None and row.kind != "scale":
                made = np.zeros(row.layout.shape(letters), jax.tree.leaves(value)[0].dtype)
                arguments[row.name] = [made] * 2 if row.per_layer else made
        with self.assertRaises(ValueError) as caught:
            jax_tkg.transformer_tkg(**arguments)
        for part in parts:
            self.assertIn(part, str(caught.exception))

    def test_odd_head_size(self) -> None:
        """All arrays but the tables, whose layout d/2 cannot say that d is odd."""
        arguments = good()
        for name in ("W_qkvs", "W_outs", "K_caches", "V_caches"):
            shape = BY_NAME[name].layout.shape({**dataclasses.asdict(SHAPE), "d": 63})
            arguments[name] = [np.zeros(shape, np.float32)] * 2
        for name in ("RoPE_cos", "RoPE_sin"):
            arguments[name] = np.zeros((31, 2, 2), np.float32)
        with self.assertRaisesRegex(ValueError, r"K_caches: expected d .* even .* got d = 63"):
            jax_tkg.transformer_tkg(**arguments)

    @parameterized.named_parameters(*named(bad_calls.BLAME))
    def test_blame(self, change: Change, parts: list[str]) -> None:
        self._assert_message(ValueError, change, parts)

    @parameterized.named_parameters(*named(bad_calls.OPTION_TYPES))
    def test_strict_type(self, change: Change, parts: list[str]) -> None:
        self._assert_message(TypeError, change, parts)

    def test_numpy_options(self) -> None:
        """NumPy's numbers are as good as Python's, and do not stay NumPy's in the parameters."""
        arguments = {
            **good(),
            "num_layers": np.int64(2),
            "lnc": np.int32(1),
            "eps": np.float32(1e-5),
        }
        found = canonical_options({**DEFAULT_OPTIONS, **_only_options(arguments)})
        self.assertEqual([type(found[n]) for n in ("num_layers", "lnc", "eps")], [int, int, float])

    def test_vanishing_eps(self) -> None:
        for eps in (0.0, 1e-45, 1e-39):
            with self.assertRaisesRegex(ValueError, "eps: expected at least 1.18e-38"):
                jax_tkg.transformer_tkg(**{**good(), "eps": eps})

    @parameterized.named_parameters(*named(bad_calls.VALUES))
    def test_value(self, change: Change, parts: list[str]) -> None:
        self._assert_message(ValueError, change, parts)

    @parameterized.named_parameters(*named(bad_calls.TYPES))
    def test_type(self, change: Change, parts: list[str]) -> None:
        self._assert_message(TypeError, change, parts)

    @parameterized.parameters("X", "W_qkvs", "K_caches", "mask_cache", "position_ids", "num_layers")
    def test_missing(self, name: str) -> None:
        arguments = good()
        del arguments[name]
        with self.assertRaisesRegex(TypeError, name):
            jax_tkg.transformer_tkg(**arguments)

    def test_unknown(self) -> None:
        with self.assertRaisesRegex(TypeError, "W_qkv"):
            jax_tkg.transformer_tkg(**good(), W_qkv=None)

    def test_traced_options(self) -> None:
        arguments = good()
        eps = arguments.pop("eps")
        with self.assertRaisesRegex(TypeError, "eps: expected a Python number"):
            jax.jit(lambda eps: jax_tkg.transformer_tkg(**arguments, eps=eps))(eps)

    @parameterized.parameters("X", "W_qkvs", "K_caches")
    def test_symbolic_shapes(self, name: str) -> None:
        (b,) = jax.export.symbolic_shape("b")
        arguments = good()
        given = arguments.pop(name)
        held = jax.tree.map(lambda one: jax.ShapeDtypeStruct((b, *one.shape[1:]), one.dtype), given)
        call = jax.jit(lambda value: jax_tkg.transformer_tkg(**arguments, **{name: value}))
        message = rf"^{name}\S*: expected a shape of integers .*, got \[b, "
        with self.assertRaisesRegex(ValueError, message):
            jax.export.export(call)(held)

    def test_symbolic_shape_of_bits(self) -> None:
        (b,) = jax.export.symbolic_shape("b")
        arguments = good()
        held = jax_tkg.bits.Bits(jax.ShapeDtypeStruct((b, 512), np.uint16), np.dtype(jnp.bfloat16))
        call = jax.jit(lambda W: jax_tkg.transformer_tkg(**{**arguments, "W_qkvs": [W, W]}))
        with self.assertRaisesRegex(ValueError, r"W_qkvs\[0\]: .*integers .*got \[b, 512\]"):
            jax.export.export(call)(held)

    def test_caches_disagree_about_their_head_axis(self) -> None:
        shape = dataclasses.replace(SHAPE, k=1)
        arguments = good(shape)
        arguments["V_caches"] = [cache[:, 0] for cache in arguments["V_caches"]]
        with self.assertRaises(ValueError) as caught:
            jax_tkg.transformer_tkg(**arguments)
        for part in ("V_caches[0]", "[2, 1, 24, 64]", "[2, 24, 64]"):
            self.assertIn(part, str(caught.exception))


if __name__ == "__main__":
    absltest.main()
