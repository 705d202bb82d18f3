"""`Bits`: what is held, what comes back, and the operation on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import bits
from jax_tkg.call.operand_table import BY_NAME, names
from jax_tkg.cpu import formulation
from jax_tkg.weights import TransformerWeights, stack_layers
from tests import cases

LOW_PRECISION = ("bfloat16", "float16", "float8_e4m3", "float8_e4m3fn", "float8_e5m2")
UNTOUCHED = ("float32", "int8", "uint16", "float4_e2m1fn")
MATRICES = tuple(name for name in names("weight") if not BY_NAME[name].optional)
SHAPE = cases.Shape(
    B=2, S=1, q=2, k=2, d=64, H=256, I=256, L=2, S_ctx=20, S_max=24, dtype="bfloat16"
)
FLOAT8 = (("float8_e4m3",) * 3, ("float8_e5m2", "float8_e4m3fn", None))


def _patterns(dtype: str) -> np.ndarray:
    """Every bit pattern of a dtype, as [2, n]."""
    size = np.dtype(dtype).itemsize
    patterns = np.arange(1 << (8 * size), dtype=np.uint32).astype(f"uint{8 * size}")
    return patterns.reshape(2, -1)


class BitsTest(parameterized.TestCase):
    @parameterized.product(dtype=LOW_PRECISION, numpy=(False, True))
    def test_every_pattern_comes_back(self, dtype: str, numpy: bool) -> None:
        patterns = _patterns(dtype)
        array: Any = patterns.view(dtype)
        held = bits.as_bits(array if numpy else jnp.asarray(array))
        self.assertIsInstance(held, bits.Bits)
        np.testing.assert_array_equal(held.bits, patterns)
        self.assertEqual((held.shape, held.ndim, held.dtype), (array.shape, 2, np.dtype(dtype)))
        values = held.values()
        self.assertEqual(values.dtype, np.dtype(dtype))
        np.testing.assert_array_equal(np.asarray(values).view(patterns.dtype), patterns)

    @parameterized.parameters(*UNTOUCHED)
    def test_others_stay_as_they_are(self, dtype: str) -> None:
        array = jnp.ones((2, 3), dtype)
        self.assertIs(bits.as_bits(array), array)

    def test_bits_stay_bits(self) -> None:
        held = bits.as_bits(jnp.ones((2, 3), jnp.bfloat16))
        self.assertIs(bits.as_bits(held), held)

    def test_refused(self) -> None:
        with self.assertRaisesRegex(TypeError, "^array: expected .* byte order, got dtype '>f2'$"):
            bits.as_bits(np.ones((2, 3), ">f2"))
        with self.assertRaisesRegex(TypeError, r"^array: expected an array .*jax.tree.map.* list$"):
            bits.as_bits([jnp.ones(2)])

    def test_arrays_of_numpy_are_not_copied(self) -> None:
        array = np.ones((2, 3), ml_dtypes.bfloat16)
        self.assertTrue(np.shares_memory(bits.as_bits(array).bits, array))

    def test_one_leaf_of_the_same_shape(self) -> None:
        """So that jit, donation and device_put see one array, with the array's sharding."""
        held = bits.as_bits(jnp.ones((2, 3), jnp.bfloat16))
        leaf = jax.tree.leaves(held)
        self.assertEqual([(one.shape, one.dtype) for one in leaf], [((2, 3), jnp.uint16)])
        doubled = jax.jit(lambda given: bits.as_bits(given.values() * 2))(held)
        np.testing.assert_array_equal(doubled.values(), 2)
        self.assertEqual(doubled.dtype, jnp.bfloat16)

    def test_indexing_takes_a_layer(self) -> None:
        array = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
        np.testing.assert_array_equal(bits.as_bits(array)[1].values(), array[1])

    def test_without_bits(self) -> None:
        array = jnp.ones((2, 3), jnp.bfloat16)
        tree = {"a": [bits.as_bits(array), None], "b": array}
        plain = bits.without_bits(tree)
        self.assertEqual(plain["a"][0].dtype, jnp.bfloat16)
        self.assertIs(plain["b"], array)
        self.assertIsNone(plain["a"][1])

    @parameterized.parameters(False, True)
    def test_weights(self, stacked: bool) -> None:
        arrays = cases.random_weights(SHAPE, np.random.default_rng(0))
        weights = TransformerWeights(**jax.tree.map(jnp.asarray, arrays))
        weights = stack_layers(weights) if stacked else weights
        held = bits.weights_as_bits(weights)
        for name in MATRICES:
            fields = jax.tree.leaves(
                getattr(held, name), is_leaf=lambda node: isinstance(node, bits.Bits)
            )
            self.assertLen(fields, 1 if stacked else SHAPE.L)
            for field in fields:
                self.assertIsInstance(field, bits.Bits)
        self.assertIs(held.W_gamma_qkvs, weights.W_gamma_qkvs)

    def test_weights_of_experts(self) -> None:
        """Routers are held as bits too, where their dtype is not float32."""
        shape = dataclasses.replace(cases.EXPERTS, dtype="bfloat16")
        arrays = cases.random_weights(shape, np.random.default_rng(0))
        held = bits.weights_as_bits(TransformerWeights(**jax.tree.map(jnp.asarray, arrays)))
        for name in ("W_gates", "W_routers"):
            for matrix in getattr(held, name):
                self.assertIsInstance(matrix, bits.Bits, name)


@pytest.mark.thorough
class OperationTest(parameterized.TestCase):
    """The operation takes bits in the place of arrays and gives caches in the form they came in."""

    @parameterized.product(
        jit=(False, True), stacked=(False, True), float8=(False, True), B=(1, 4, 8)
    )
    @pytest.mark.extended_except("0", "5", "7", "10", "14", "15", "18", "23")
    def test_against_oracle(self, jit: bool, stacked: bool, float8: bool, B: int) -> None:
        kinds = FLOAT8 if float8 else ()
        if stacked and float8:
            kinds = (FLOAT8[0],) * SHAPE.L
        shape = dataclasses.replace(SHAPE, B=B, quantized=kinds)
        rng = np.random.default_rng(B)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        arguments = {**weights, **inputs}
        if stacked:
            arguments = cases.stack(arguments)
        for name in (*MATRICES, "K_caches", "V_caches"):
            arguments[name] = jax.tree.map(bits.as_bits, arguments[name])

        def call(given: dict[str, Any]) -> Any:
            return jax_tkg.transformer_tkg(**given, **cases.options(shape))

        got = (jax.jit(call) if jit else call)(arguments)
        structure = jax.tree.structure((arguments["K_caches"], arguments["V_caches"]))
        self.assertEqual(jax.tree.structure((got.K_caches, got.V_caches)), structure)
        plain = got._replace(
            K_caches=bits.without_bits(got.K_caches), V_caches=bits.without_bits(got.V_caches)
        )
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(plain, shape, inputs, hidden, K[0], V[0], written)

    @parameterized.product(stacked=(False, True), held=(False, True))
    @pytest.mark.extended_except("1")
    def test_attention_in_several_turns(self, stacked: bool, held: bool) -> None:
        """Caches so large that their heads are attended a few at a time, as bits and as arrays."""
        shape = dataclasses.replace(SHAPE, B=8, q=4, S_ctx=1000, S_max=1030)
        K = jax.ShapeDtypeStruct((shape.B, shape.k, shape.d, shape.S_max), jnp.bfloat16)
        taken = formulation.attention_heads(K, shape.B * shape.k, shape.S_ctx)
        self.assertLess(taken, shape.B * shape.k)
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        arguments = {**weights, **inputs}
        if stacked:
            arguments = cases.stack(arguments)
        for name in ("K_caches", "V_caches") if held else ():
            arguments[name] = jax.tree.map(bits.as_bits, arguments[name])
        got = jax_tkg.transformer_tkg(**arguments, **cases.options(shape))
        plain = got._replace(
            K_caches=bits.without_bits(got.K_caches), V_caches=bits.without_bits(got.V_caches)
        )
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(plain, shape, inputs, hidden, K[0], V[0], written)

    @parameterized.parameters("reference", "cpu")
    def test_stacks_of_numpy_outside_of_jit(self, implementation: str) -> None:
        """`as_bits` views arrays of NumPy, and a scan over layers takes a traced one of each."""
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(SHAPE, rng), cases.random_inputs(SHAPE, rng)
        arguments = cases.stack({**weights, **inputs})
        arguments |= cases.held_as_bits(arguments)
        options = {**cases.options(SHAPE), "implementation": implementation}
        got = bits.without_bits(jax_tkg.transformer_tkg(**arguments, **options))
        hidden, K, V, written = cases.expected(SHAPE, [weights], [inputs])
        cases.check(got, SHAPE, inputs, hidden, K[0], V[0], written)
        if implementation == "reference":
            direct = jax_tkg.reference.transformer_tkg(**arguments, **cases.options(SHAPE))
            np.testing.assert_array_equal(direct.hidden, got.hidden)

    @parameterized.parameters(
        ("bfloat16", "uint8", "expected Bits that hold bfloat16 as an array of uint16 .* uint8"),
        ("bfloat16", "int16", "expected Bits that hold bfloat16 as an array of uint16 .* int16"),
        ("bfloat16", "bfloat16", "expected Bits that hold bfloat16 as an array of uint16 .* bfl"),
        (
            "float8_e5m2",
            "uint16",
            "expected Bits that hold float8_e5m2 as an array of uint8 .* uint16",
        ),
        ("float32", "uint32", "expected Bits of a float dtype of 8 or 16 bits, got float32"),
        ("uint16", "uint16", "expected Bits of a float dtype of 8 or 16 bits, got uint16"),
    )
    def test_other_integers(self, dtype: str, held: str, message: str) -> None:
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(SHAPE, rng), cases.random_inputs(SHAPE, rng)
        arguments = {**weights, **inputs, **cases.options(SHAPE)}
        for name in ("W_gates", "K_caches"):
            first, *rest = arguments[name]
            wrong = bits.Bits(jnp.zeros(first.shape, held), jnp.dtype(dtype))
            with self.assertRaisesRegex(TypeError, rf"^{name}\[0\]: {message}"):
                jax_tkg.transformer_tkg(**{**arguments, name: [wrong, *rest]})

    @pytest.mark.extended
    def test_some_as_bits(self) -> None:
        """Arrays of weights beside caches of bits, the other way round, and some of each."""
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(SHAPE, rng), cases.random_inputs(SHAPE, rng)
        some = (("W_outs", "W_ups"), ("K_caches",), ("V_caches",))
        for chosen in (("K_caches", "V_caches"), MATRICES, *some):
            arguments = {**weights, **inputs}
            for name in chosen:
                arguments[name] = [bits.as_bits(array) for array in arguments[name]]
            got = jax_tkg.transformer_tkg(**arguments, **cases.options(SHAPE))
            given = jax.tree.structure((arguments["K_caches"], arguments["V_caches"]))
            self.assertEqual(jax.tree.structure((got.K_caches, got.V_caches)), given)
            plain = got._replace(
                K_caches=bits.without_bits(got.K_caches), V_caches=bits.without_bits(got.V_caches)
            )
            hidden, K, V, written = cases.expected(SHAPE, [weights], [inputs])
            cases.check(plain, SHAPE, inputs, hidden, K[0], V[0], written)


if __name__ == "__main__":
    absltest.main()
