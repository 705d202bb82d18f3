"""The public function against the float64 oracle."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

import jax_tkg
from jax_tkg.call.options import ACTIVATIONS
from tests import cases

HEADS = ((1, 1), (4, 1), (8, 2), (9, 3), (32, 8))
SHAPES_PER_HEADS = {"float32": 12, "bfloat16": 5, "float16": 2}
FEW_SHAPES = 2
"""In `make test`; the first is the simplest."""

VALUES_PER_SHAPE = 6
"""Random inputs run per drawn shape: compiling costs far more than running."""


@functools.lru_cache(maxsize=4)
def _compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(jax_tkg.transformer_tkg, **options))


def _run(shape: cases.Shape, seed: int, stacked: bool = False) -> None:
    rng = np.random.default_rng(seed)
    weights = cases.random_weights(shape, rng)
    # One compilation serves all values, so the dtype of the positions is fixed per shape.
    kind = np.uint32 if seed % 2 else np.int32
    for _ in range(VALUES_PER_SHAPE):
        inputs = cases.random_inputs(shape, rng)
        if inputs["position_ids"] is not None:
            inputs["position_ids"] = jax.tree.map(
                lambda ids: ids.astype(kind), inputs["position_ids"]
            )
        arguments = {**weights, **inputs}
        if stacked:
            arguments = cases.stack(arguments, shape.layer_kinds)
        actual = _compiled(**cases.options(shape))(**arguments)
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(actual, shape, inputs, hidden, K[0], V[0], written)


@st.composite
def quantizations(draw: st.DrawFn, L: int) -> tuple[tuple[str | None, ...], ...]:
    kinds = st.sampled_from((None, *cases.FLOAT8))
    every = st.tuples(kinds, kinds, kinds)
    alike = kinds.map(lambda kind: (kind, kind, kind))
    form = draw(st.sampled_from(("none", "same layers", "some layers", "some matrices")))
    if form == "none":
        return ()
    if form == "same layers":
        return (draw(every),) * L
    return tuple(draw(alike if form == "some layers" else every) for _ in range(L))


@st.composite
def layer_options(draw: st.DrawFn, d: int) -> dict[str, Any]:
    """Fields of `cases.Shape`: one option of a layer, several, or (the rarest) none."""
    values: dict[str, Any] = {
        # Scores that do not grow with d: large ones make the rounding of float32 visible.
        "softmax_scale": draw(st.sampled_from((0.4, 2.4))) * d**-0.5,
        "attention_softcap": draw(st.sampled_from((0.5, 3.0, 50.0))),
        "activation": draw(st.sampled_from(ACTIVATIONS[1:])),
    }
    every = (*cases.LAYER_OPTIONS, *values)
    # Hypothesis draws the first of these far more often than the others.
    most = draw(st.sampled_from((len(every), 1, 1, len(every), 0)))
    chosen = draw(st.sets(st.sampled_from(every), min_size=min(most, 2), max_size=most))
    fields = {name: value for name, value in values.items() if name in chosen}
    return {"options": tuple(n for n in cases.LAYER_OPTIONS if n in chosen), **fields}


@st.composite
def kinds(draw: st.DrawFn, S: int) -> dict[str, Any]:
    """Fields of `cases.Shape`: equal layers, or a pattern of kinds, once or repeated."""
    pattern = draw(st.sampled_from(((), (), (0, 1), (1, 0, 0), (0, 1, 2))))
    if not pattern:
        return {}
    L = draw(st.integers(len(pattern), 5))
    capacities = draw(st.lists(st.integers(S, 40), min_size=max(pattern), max_size=max(pattern)))
    return {
        "L": L,
        "layer_kinds": (pattern * 3)[:L],
        "kinds": tuple(
            (
                draw(st.integers(S, S_max)),
                S_max,
                draw(st.booleans()),
                draw(st.sampled_from(("first", "each", "none"))),
            )
            for S_max in capacities
        ),
    }


@st.composite
def shapes(draw: st.DrawFn, q: int, k: int, dtype: str) -> cases.Shape:
    S = draw(st.integers(1, 8))
    S_ctx = draw(st.integers(S, 40))
    layers = {"L": draw(st.integers(1, 3)), **draw(kinds(S))}
    # The oracle walks through every query of every head.
    B = draw(st.integers(1, 8 if q < 32 else 3))
    d = draw(st.sampled_from(cases.HEAD_SIZES))
    return cases.Shape(
        B=B,
        S=S,
        q=q,
        k=k,
        d=d,
        H=128 * draw(st.integers(1, 4)),
        I=128 * draw(st.integers(1, 3)),
        **layers,
        S_ctx=S_ctx,
        S_max=S_ctx + draw(st.integers(1, 24)),
        dtype=dtype,
        unified=draw(st.booleans()),
        positions=draw(st.sampled_from(("first", "each", "first", "each", "none"))),
        quantized=draw(quantizations(layers["L"])),
        clamp_bound=draw(st.sampled_from((0.0, 0.5))),
        scale_rows=draw(st.sampled_from((1, 128))),
        **draw(layer_options(d)),
    )


def each_drawn_shape(
    name: str, count: int, q: int, k: int, dtype: str, run: Callable[[cases.Shape, int, bool], None]
) -> None:
    """Calls `run` with each of `count` shapes, a seed, and whether its layers are stacked.

    Every name has draws of its own, the same in each run.
    """

    @hypothesis.seed(zlib.crc32(name.encode()))
    @hypothesis.settings(max_examples=count)
    @hypothesis.given(data=st.data())
    def draw(data: st.DataObject) -> None:
        shape = data.draw(shapes(q, k, dtype))
        stackable = len(set(shape.quantized)) <= 1
        stacked = stackable and data.draw(st.booleans())
        run(shape, data.draw(st.integers(0, 1 << 30)), stacked)

    draw()


@pytest.mark.slow
class DrawnShapesTest(parameterized.TestCase):
    """5 head counts x (12 + 5 + 2) drawn shapes x 6 draws of values: 570 cases; and 60 others."""

    @parameterized.named_parameters(
        *(
            (f"{dtype}_q{q}_k{k}", f"{dtype} {q} {k}", SHAPES_PER_HEADS[dtype], q, k, dtype)
            for dtype in SHAPES_PER_HEADS
            for q, k in HEADS
        ),
        *(
            (f"few_{dtype}_q{q}_k{k}", f"few {dtype} {q} {k}", FEW_SHAPES, q, k, dtype)
            for (q, k), dtype in zip(HEADS, itertools.cycle(SHAPES_PER_HEADS), strict=False)
        ),
    )
    @pytest.mark.extended_except("few_*")
    def test_drawn_shapes(self, name: str, count: int, q: int, k: int, dtype: str) -> None:
        each_drawn_shape(name, count, q, k, dtype, _run)


NAMED_SHAPES = {
    **cases.SHAPES,
    "kinds": cases.KINDS,
    **{name: cases.Shape(q=6, S=3, L=1, **own) for name, own in cases.ONE_OPTION.items()},
    # Kernels alone want whole tiles of 128.
    "part_of_a_tile": cases.Shape(H=96, I=72),
    "odd_sizes": cases.Shape(H=75, I=131),
    "part_of_a_tile_float8": cases.Shape(
        H=200, I=40, dtype="bfloat16", quantized=(("float8_e4m3fn",) * 3,) * 2
    ),
}
"""One shape of each kind, and one with each option of a layer alone."""


@pytest.mark.thorough
class NamedShapesTest(parameterized.TestCase):
    @parameterized.named_parameters(NAMED_SHAPES.items())
    def test_named_shape(self, shape: cases.Shape) -> None:
        _run(shape, 0)


def check_combinations(found: list[set[str]]) -> None:
    """Each option of a layer is alone in one of these cases, and beside others in another."""
    for option in cases.ONE_OPTION:
        assert {option} in found, option
    beside = set().union(*(options for options in found if len(options) > 1))
    # One case has one activation, so that draws have few of the last ones.
    rare = {f"activation_{name}" for name in ACTIVATIONS[2:]}
    assert beside >= set(cases.ONE_OPTION) - rare, beside


@pytest.mark.thorough
class CountTest(absltest.TestCase):
    def test_options_of_a_layer(self) -> None:
        """500 cases and more have one at least, each alone and among others."""
        found = [cases.layer_options(shape) for shape in NAMED_SHAPES.values()]

        def keep(shape: cases.Shape, seed: int, stacked: bool) -> None:
            found.append(cases.layer_options(shape))

        for dtype, count in SHAPES_PER_HEADS.items():
            for q, k in HEADS:
                each_drawn_shape(f"{dtype} {q} {k}", count, q, k, dtype, keep)
        self.assertGreaterEqual(VALUES_PER_SHAPE * sum(map(bool, found)), 500)
        check_combinations(found)


@pytest.mark.thorough
class FormsTest(parameterized.TestCase):
    """Containers, ranks and ways to call do not change the result."""

    def setUp(self) -> None:
        super().setUp()
        self.shape = cases.Shape(L=2, quantized=(("float8_e4m3",) * 3,) * 2)
        rng = np.random.default_rng(0)
        self.weights = cases.random_weights(self.shape, rng)
        self.inputs = cases.random_inputs(self.shape, rng)
        self.options = cases.options(self.shape)
        self.want = jax_tkg.transformer_tkg(**self.weights, **self.inputs, **self.options)

    def _assert_same(self, got: Any, K: Any = None, V: Any = None, tolerance: float = 1e-6) -> None:
        close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
        close(got.hidden, self.want.hidden)
        for layer in range(2):
            K_got = (got.K_caches if K is None else K)[layer]
            V_got = (got.V_caches if V is None else V)[layer]
            close(K_got, self.want.K_caches[layer])
            close(V_got, self.want.V_caches[layer])

    def test_eager_agrees_with_the_oracle(self) -> None:
        hidden, K, V, written = cases.expected(self.shape, [self.weights], [self.inputs])
        cases.check(self.want, self.shape, self.inputs, hidden, K[0], V[0], written)

    @parameterized.parameters("jit", "disable_jit", "reference")
    @pytest.mark.extended_except("0", "1")
    def test_ways_to_call(self, way: str) -> None:
        arguments = {**self.weights, **self.inputs}
        call = functools.partial(jax_tkg.transformer_tkg, **self.options)
        if way == "jit":
            self._assert_same(jax.jit(call)(**arguments))
        elif way == "disable_jit":
            with jax.disable_jit():
                self._assert_same(call(**arguments))
        else:
            # On CPUs the primitive adds up products in another order.
            reference = jax_tkg.reference.transformer_tkg(**arguments, **self.options)
            self._assert_same(reference, tolerance=1e-5)

    @pytest.mark.extended
    def test_implementation_reference(self) -> None:
        got = jax_tkg.transformer_tkg(
            **self.weights, **self.inputs, **self.options, implementation="reference"
        )
        # On CPUs "auto" adds up products in another order.
        self._assert_same(got, tolerance=1e-5)

    def test_lists_and_tuples_come_back_as_they_went(self) -> None:
        tuples = {name: tuple(self.inputs[name]) for name in ("K_caches", "V_caches")}
        got = jax_tkg.transformer_tkg(**self.weights, **{**self.inputs, **tuples}, **self.options)
        self.assertIsInstance(self.want.K_caches, list)
        self.assertIsInstance(got.K_caches, tuple)
        self.assertIsInstance(got.V_caches, tuple)
        self._assert_same(got)

    def test_stacked(self) -> None:
        arguments = cases.stack({**self.weights, **self.inputs})
        got = jax_tkg.transformer_tkg(**arguments, **self.options)
        self.assertEqual(got.K_caches.shape, arguments["K_caches"].shape)
        self._assert_same(got)

    @parameterized.parameters(("K_caches", "V_caches"), ("W_qkvs", "W_downs", "W_down_scales"))
    @pytest.mark.extended_except("0")
    def test_some_stacked(self, *names: str) -> None:
        arguments = {**self.weights, **self.inputs}
        for name in names:
            arguments[name] = np.stack(arguments[name])
        self._assert_same(jax_tkg.transformer_tkg(**arguments, **self.options))

    @parameterized.parameters(False, True)
    def test_layers_beyond_num_layers_stay(self, stacked: bool) -> None:
        longer = {
            name: [*value, value[0]] if isinstance(value, list) else value
            for name, value in {**self.weights, **self.inputs}.items()
        }
        if stacked:
            longer = cases.stack(longer)
        got = jax_tkg.transformer_tkg(**longer, **self.options)
        self.assertLen(got.K_caches, 3)
        np.testing.assert_array_equal(got.K_caches[2], longer["K_caches"][2])
        np.testing.assert_array_equal(got.V_caches[2], longer["V_caches"][2])
        self._assert_same(got)

    @parameterized.parameters(False, True)
    @pytest.mark.extended_except("1")
    def test_caches_without_their_head_axis(self, stacked: bool) -> None:
        shape = dataclasses.replace(self.shape, k=1)
        rng = np.random.default_rng(3)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        caches = {name: inputs.pop(name) for name in ("K_caches", "V_caches")}
        if stacked:
            caches = {name: np.stack(value) for name, value in caches.items()}
            flat = {name: value[:, :, 0] for name, value in caches.items()}
        else:
            flat = {name: [cache[:, 0] for cache in value] for name, value in caches.items()}
        want = jax_tkg.transformer_tkg(**weights, **inputs, **caches, **self.options)
        got = jax_tkg.transformer_tkg(**weights, **inputs, **flat, **self.options)
        np.testing.assert_array_equal(got.hidden, want.hidden)
        for layer in range(2):
            np.testing.assert_array_equal(got.K_caches[layer], want.K_caches[layer][:, 0])
            np.testing.assert_array_equal(got.V_caches[layer], want.V_caches[layer][:, 0])

    def test_masks_of_numbers(self) -> None:
        for dtype in (np.int32, np.uint8, np.int8):
            masks = {n: self.inputs[n].astype(dtype) * 3 for n in ("mask_cache", "mask_active")}
            self._assert_same(
                jax_tkg.transformer_tkg(**self.weights, **{**self.inputs, **masks}, **self.options)
            )

    @parameterized.parameters("int8", "uint8", "int16", "uint16", "int32", "uint32")
    @pytest.mark.extended_except("1", "4")
    def test_dtypes_of_positions(self, dtype: str) -> None:
        shape = dataclasses.replace(self.shape, S_max=300)
        rng = np.random.default_rng(4)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        inputs["position_ids"] = np.array([[3], [120]], dtype)
        got = jax_tkg.transformer_tkg(**weights, **inputs, **self.options)
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(got, shape, inputs, hidden, K[0], V[0], written)

    @parameterized.product(stacked=(False, True), dtype=("int32", "int64", "uint64"))
    @pytest.mark.extended_except("1", "3")
    def test_64_bit_mode(self, stacked: bool, dtype: str) -> None:
        jax.config.update("jax_enable_x64", True)
        self.addCleanup(jax.config.update, "jax_enable_x64", False)
        inputs = {**self.inputs, "position_ids": np.array([[3], [2**32 - 1]]).astype(dtype)}
        arguments = {**self.weights, **inputs}
        got = jax_tkg.transformer_tkg(
            **(cases.stack(arguments) if stacked else arguments), **self.options
        )
        hidden, K, V, written = cases.expected(self.shape, [self.weights], [inputs])
        cases.check(got, self.shape, inputs, hidden, K[0], V[0], written)

    @pytest.mark.extended
    def test_weakly_typed_arrays(self) -> None:
        """What `jnp.full` makes: the same program as of other arrays, stacked layers in a loop."""
        arguments = cases.stack({**self.weights, **self.inputs})
        names = ("X", "RoPE_cos", "W_gamma_qkvs", "K_caches")
        weak = {name: jnp.full(arguments[name].shape, 0.5) for name in names}
        strong = {name: jnp.full(array.shape, 0.5, jnp.float32) for name, array in weak.items()}
        self.assertTrue(jax.typeof(weak["X"]).weak_type)
        call = jax.jit(functools.partial(jax_tkg.transformer_tkg, **self.options))
        texts = [call.lower(**{**arguments, **some}).compile().as_text() for some in (weak, strong)]
        self.assertEqual(*(len(text.splitlines()) for text in texts))
        got, want = (call(**{**arguments, **some}) for some in (weak, strong))
        jax.tree.map(np.testing.assert_array_equal, got, want)

    def test_sbuf_residual_changes_nothing_here(self) -> None:
        self._assert_same(
            jax_tkg.transformer_tkg(
                **self.weights, **self.inputs, **self.options, sbuf_residual_and_cc=True
            )
        )

    def test_the_later_of_two_tokens_in_one_slot_stays(self) -> None:
        shape = dataclasses.replace(self.shape, S=3, positions="each")
        rng = np.random.default_rng(5)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        inputs["mask_cache"][:] = True
        last = shape.S_max - 1
        inputs["position_ids"] = np.array([[4, 4, 4], [last, last, shape.S_max]], np.int32)
        got = jax_tkg.transformer_tkg(**weights, **inputs, **self.options)
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(got, shape, inputs, hidden, K[0], V[0], written)


if __name__ == "__main__":
    absltest.main()
