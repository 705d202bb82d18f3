"""Decode loops: donated caches, loops over steps, vmap and export."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import pickle
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.bits import as_bits, weights_as_bits, without_bits
from jax_tkg.weights import TransformerWeights
from tests import cases, hlo

pytestmark = pytest.mark.compilation("users_hlo")

# One layer's cache is larger than every activation, weight and mask.
SHAPE = cases.Shape(
    B=2, S=1, q=2, k=2, d=64, H=128, I=128, L=3, S_ctx=512, S_max=1024, unified=False
)
CACHE_ELEMENTS = SHAPE.B * SHAPE.k * SHAPE.d * SHAPE.S_max
STEPS = 5
FORMS = {
    f"{dtype}_{'stacked' if stacked else 'lists'}": (dtype, stacked)
    for dtype in ("float32", "bfloat16")
    for stacked in (False, True)
}


def _step(
    arguments: dict[str, Any], caches: tuple[Any, Any], x: Any, length: Any, **options: Any
) -> tuple[jax.Array, tuple[Any, Any]]:
    """One token more: everything that depends on the length is computed from it."""
    S_ctx, B, q, S = arguments["mask_cache"].shape
    filled = jnp.arange(S_ctx)[:, None, None, None] < length
    out = jax_tkg.transformer_tkg(
        X=x,
        **{name: arguments[name] for name in arguments if name not in ("X", "mask_cache")},
        K_caches=caches[0],
        V_caches=caches[1],
        mask_cache=jnp.broadcast_to(filled, (S_ctx, B, q, S)),
        position_ids=jnp.full((B, 1), length, jnp.int32),
        **options,
    )
    return out.hidden, (out.K_caches, out.V_caches)


def _problem(shape: cases.Shape, stacked: bool = False) -> tuple[dict[str, Any], Any, Any]:
    """Arguments that stay, caches (arrays of JAX), and the first token."""
    rng = np.random.default_rng(0)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    arguments["mask_active"][:] = True
    del arguments["position_ids"]
    if stacked:
        arguments = cases.stack(arguments)
    arguments = jax.tree.map(jnp.asarray, arguments)
    caches = _own((arguments.pop("K_caches"), arguments.pop("V_caches")))
    return arguments, caches, arguments.pop("X")


def _own(tree: Any) -> Any:
    """Arrays in buffers of JAX's own: those made from NumPy may share its memory."""
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(tree)


READER = """
import pathlib, pickle, sys
import jax
import jax_tkg
program, arguments = (pathlib.Path(name).read_bytes() for name in sys.argv[1:])
exported = jax.export.deserialize(program)
given = jax.tree.unflatten(exported.in_tree, pickle.loads(arguments))
results = exported.call(*given[0], **given[1])
leaves = [jax.device_get(leaf) for leaf in jax.tree.leaves(results)]
sys.stdout.buffer.write(pickle.dumps([type(results).__name__, *leaves]))
"""


@pytest.mark.thorough
class DonationTest(parameterized.TestCase):
    def _compile(self, run: Any, stacked: bool, dtype: str) -> tuple[Any, Any, Any, Any]:
        arguments, caches, x = _problem(dataclasses.replace(SHAPE, dtype=dtype), stacked)
        compiled = jax.jit(run, donate_argnums=1).lower(arguments, caches, x, 7).compile()
        return compiled, arguments, caches, x

    def _assert_in_place(self, compiled: Any, arguments: Any, caches: Any, x: Any) -> None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
        self.assertGreaterEqual(compiled.memory_analysis().alias_size_in_bytes, size)
        self.assertEqual(hlo.copies_of(compiled, CACHE_ELEMENTS), [])
        before = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(caches)]
        _, updated = compiled(arguments, caches, x, 7)
        after = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(updated)]
        self.assertEqual(before, after)
        self.assertTrue(all(leaf.is_deleted() for leaf in jax.tree.leaves(caches)))

    @parameterized.named_parameters((name, *form) for name, form in FORMS.items())
    @pytest.mark.extended_except("bfloat16_lists")
    def test_step(self, dtype: str, stacked: bool) -> None:
        run = functools.partial(_step, num_layers=SHAPE.L)
        self._assert_in_place(*self._compile(run, stacked, dtype))

    @parameterized.product(form=tuple(FORMS), loop=("scan", "fori_loop"))
    @pytest.mark.extended_except("1", "6")
    def test_loop(self, form: str, loop: str) -> None:
        dtype, stacked = FORMS[form]
        run = {"scan": _scanned, "fori_loop": _looped}[loop]
        self._assert_in_place(*self._compile(run, stacked, dtype))

    def test_the_search_for_copies_finds_one(self) -> None:
        """A cache that is wanted both before and after its update cannot be in place."""

        def twice(cache: jax.Array) -> Any:
            return cache.at[0, 0, 0, 0].set(1.0), cache

        cache = jnp.zeros((SHAPE.B, SHAPE.k, SHAPE.d, SHAPE.S_max))
        both = jax.jit(twice, donate_argnums=0).lower(cache).compile()
        self.assertNotEqual(hlo.copies_of(both, CACHE_ELEMENTS), [])


def _next_token(x: jax.Array, hidden: jax.Array) -> jax.Array:
    """Some function of the output as the next input, bounded as embeddings are."""
    return (jnp.tanh(hidden.astype(jnp.float32)) + x.astype(jnp.float32) / 2).astype(x.dtype)


def _scanned(arguments: Any, caches: Any, x: Any, length: Any) -> Any:
    def body(carry: Any, step: Any) -> Any:
        x, caches = carry
        hidden, caches = _step(arguments, caches, x, length + step, num_layers=SHAPE.L)
        return (_next_token(x, hidden), caches), hidden

    (_, caches), hidden = jax.lax.scan(body, (x, caches), jnp.arange(STEPS))
    return hidden[-1], caches


def _looped(arguments: Any, caches: Any, x: Any, length: Any) -> Any:
    def body(step: Any, carry: Any) -> Any:
        x, caches, _ = carry
        hidden, caches = _step(arguments, caches, x, length + step, num_layers=SHAPE.L)
        return _next_token(x, hidden), caches, hidden

    _, caches, hidden = jax.lax.fori_loop(0, STEPS, body, (x, caches, x))
    return hidden, caches


@pytest.mark.thorough
class LoopsTest(parameterized.TestCase):
    """Loops give what the steps give one by one, and those what the oracle says."""

    @parameterized.product(stacked=(False, True), loop=("scan", "fori_loop"))
    @pytest.mark.extended_except("2")
    def test_loop(self, stacked: bool, loop: str) -> None:
        arguments, caches, x = _problem(SHAPE, stacked)
        run = {"scan": _scanned, "fori_loop": _looped}[loop]
        got, got_caches = jax.jit(run)(arguments, caches, x, 7)
        step = jax.jit(functools.partial(_step, num_layers=SHAPE.L))
        for index in range(STEPS):
            hidden, caches = step(arguments, caches, x, 7 + index)
            x = _next_token(x, hidden)
        np.testing.assert_allclose(got, hidden, rtol=1e-5, atol=1e-5)
        for one, other in zip(jax.tree.leaves(got_caches), jax.tree.leaves(caches), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    def test_written_tokens_are_attended_by_the_next_step(self) -> None:
        """Two steps of the oracle, the second over the caches that the first wrote."""
        shape = dataclasses.replace(SHAPE, S_ctx=12, S_max=16)
        rng = np.random.default_rng(1)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        arguments = {**weights, **inputs}
        inputs["mask_active"][:] = True
        for length in (5, 6):
            inputs["mask_cache"][:] = np.arange(12)[:, None, None, None] < length
            inputs["position_ids"] = np.full((shape.B, 1), length, np.int32)
            arguments = {**weights, **inputs}
            got = jax_tkg.transformer_tkg(**arguments, **cases.options(shape))
            hidden, K, V, written = cases.expected(shape, [weights], [inputs])
            cases.check(got, shape, inputs, hidden, K[0], V[0], written)
            inputs["K_caches"] = [np.asarray(cache) for cache in got.K_caches]
            inputs["V_caches"] = [np.asarray(cache) for cache in got.V_caches]


@pytest.mark.thorough
class TransformationsTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.shape = cases.Shape(B=2, S=2, q=2, k=1, L=2)
        rng = np.random.default_rng(0)
        self.weights = [cases.random_weights(self.shape, rng) for _ in range(3)]
        self.inputs = [cases.random_inputs(self.shape, rng) for _ in range(3)]
        for inputs in self.inputs:
            inputs["position_ids"] = inputs["position_ids"].astype(np.int32)
        self.call = functools.partial(jax_tkg.transformer_tkg, **cases.options(self.shape))

    def _assert_batch(self, got: Any, weights: list[Any], inputs: list[Any]) -> None:
        for index, (one_weights, one_inputs) in enumerate(zip(weights, inputs, strict=True)):
            hidden, K, V, written = cases.expected(self.shape, [one_weights], [one_inputs])
            mine = jax.tree.map(lambda array: array[index], got)  # noqa: B023
            cases.check(mine, self.shape, one_inputs, hidden, K[0], V[0], written)

    @parameterized.product(jit=(False, True), stacked=(False, True))
    @pytest.mark.extended_except("2")
    def test_vmap_over_inputs(self, jit: bool, stacked: bool) -> None:
        weights = self.weights[0]
        inputs = self.inputs
        form = cases.stack if stacked else dict
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *[form(one) for one in inputs])
        run = jax.vmap(lambda one: self.call(**form(weights), **one))
        got = (jax.jit(run) if jit else run)(batch)
        self._assert_batch(got, [weights] * 3, inputs)

    def test_vmap_over_one_input(self) -> None:
        """Only X is batched; everything else is shared."""
        shared = {name: value for name, value in self.inputs[0].items() if name != "X"}
        X = np.stack([inputs["X"] for inputs in self.inputs])
        got = jax.vmap(lambda x: self.call(X=x, **self.weights[0], **shared))(X)
        inputs = [{**shared, "X": one["X"]} for one in self.inputs]
        self._assert_batch(got, [self.weights[0]] * 3, inputs)

    @parameterized.product(stacked=(False, True), jit=(False, True))
    @pytest.mark.extended_except("0")
    def test_vmap_over_nothing(self, stacked: bool, jit: bool) -> None:
        """An axis of no members: results that have such an axis."""
        form = cases.stack if stacked else dict
        shared = {name: one for name, one in self.inputs[0].items() if name != "X"}
        X = np.stack([inputs["X"] for inputs in self.inputs])
        run = jax.vmap(lambda x: self.call(X=x, **form(self.weights[0]), **form(shared)))
        got = (jax.jit(run) if jit else run)(X[:0])
        want = jax.eval_shape(run, X)
        for none, some in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            self.assertEqual((none.shape, none.dtype), ((0, *some.shape[1:]), some.dtype))

    @pytest.mark.extended
    def test_vmap_over_weights(self) -> None:
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *self.weights)
        got = jax.vmap(lambda one: self.call(**one, **self.inputs[0]))(batch)
        self._assert_batch(got, self.weights, [self.inputs[0]] * 3)

    @pytest.mark.extended
    def test_vmap_on_other_axes(self) -> None:
        X = np.stack([inputs["X"] for inputs in self.inputs], axis=2)
        shared = {name: value for name, value in self.inputs[0].items() if name != "X"}
        run = jax.vmap(
            lambda x: self.call(X=x, **self.weights[0], **shared).hidden, in_axes=2, out_axes=1
        )
        got = run(X)
        for index, one in enumerate(self.inputs):
            want = self.call(X=one["X"], **self.weights[0], **shared).hidden
            np.testing.assert_allclose(got[:, index], want, rtol=1e-5, atol=1e-5)

    @pytest.mark.extended
    def test_vmap_twice(self) -> None:
        shared = {name: value for name, value in self.inputs[0].items() if name != "X"}
        X = np.stack([inputs["X"] for inputs in self.inputs])
        X = np.stack([X, X[::-1]])
        run = jax.vmap(jax.vmap(lambda x: self.call(X=x, **self.weights[0], **shared).hidden))
        got = run(X)
        for outer in range(2):
            want = jax.vmap(lambda x: self.call(X=x, **self.weights[0], **shared).hidden)(X[outer])
            np.testing.assert_allclose(got[outer], want, rtol=1e-5, atol=1e-5)

    @parameterized.product(stacked=(False, True), held=(False, True))
    @pytest.mark.extended_except("1")
    def test_export(self, stacked: bool, held: bool) -> None:
        """A step goes through a file to a process that has no more than `import jax_tkg`."""
        shape = dataclasses.replace(self.shape, dtype="bfloat16")
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        form = cases.stack if stacked else dict
        packed = TransformerWeights(**form(weights))
        others = form(inputs)
        caches = [others.pop(name) for name in ("K_caches", "V_caches")]
        if held:
            packed, caches = weights_as_bits(packed), jax.tree.map(as_bits, caches)

        def step(weights: TransformerWeights, K: Any, V: Any, others: Any) -> Any:
            return self.call(**weights.arguments(), K_caches=K, V_caches=V, **others)

        exported = jax.export.export(jax.jit(step))(packed, *caches, others)
        got = jax.export.deserialize(exported.serialize()).call(packed, *caches, others)
        self.assertIsInstance(got, jax_tkg.TransformerTkgOutput)
        results = jax.tree.structure((got.K_caches, got.V_caches))
        self.assertEqual(results, jax.tree.structure(tuple(caches)))
        plain = without_bits(got)
        hidden, K, V, written = cases.expected(shape, [weights], [inputs])
        cases.check(plain, shape, inputs, hidden, K[0], V[0], written)
        with tempfile.TemporaryDirectory() as folder:
            program, arguments = (pathlib.Path(folder) / name for name in ("program", "arguments"))
            program.write_bytes(exported.serialize())
            leaves = jax.tree.leaves((packed, *caches, others))
            arguments.write_bytes(pickle.dumps([np.asarray(leaf) for leaf in leaves]))
            done = subprocess.run(
                [sys.executable, "-c", READER, program, arguments],
                capture_output=True,
                check=False,
            )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        kind, *read = pickle.loads(done.stdout)
        self.assertEqual(kind, "TransformerTkgOutput")
        for one, other in zip(read, jax.tree.leaves(got), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_abstract_evaluation(self) -> None:
        arguments = {**self.weights[0], **self.inputs[0]}
        out = jax.eval_shape(lambda given: self.call(**given), arguments)
        for name, given in (("hidden", arguments["X"]), ("K_caches", arguments["K_caches"])):
            got, want = jax.tree.leaves(getattr(out, name)), jax.tree.leaves(given)
            self.assertEqual([(a.shape, a.dtype) for a in got], [(a.shape, a.dtype) for a in want])

    def test_one_equation_per_call(self) -> None:
        arguments = {**self.weights[0], **self.inputs[0]}
        jaxpr = jax.make_jaxpr(lambda given: self.call(**given))(arguments)
        names = [equation.primitive.name for equation in jaxpr.eqns]
        self.assertEqual(names.count("transformer_tkg"), 1)

    @pytest.mark.extended
    def test_checkpoint(self) -> None:
        """jax.checkpoint and custom pytrees of weights leave the value as it is."""
        arguments = {**self.weights[0], **self.inputs[0]}
        got = jax.checkpoint(lambda given: self.call(**given))(arguments)
        want = self.call(**arguments)
        np.testing.assert_allclose(got.hidden, want.hidden, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
