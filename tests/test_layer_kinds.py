"""Kinds of layers: their forms, their checks, and transformations of calls that have them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.call.layer_kinds import LayerKinds
from tests import cases

SHAPE = cases.KINDS
PER_KIND = ("RoPE_cos", "RoPE_sin", "mask_cache", "mask_active", "position_ids")
Change = Callable[[dict[str, Any]], None]


def _arguments(shape: cases.Shape = SHAPE, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


def _assert_same(got: Any, want: Any, tolerance: float = 0.0) -> None:
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(close, tuple(got), tuple(want))


class LayerKindsTest(parameterized.TestCase):
    @parameterized.parameters(
        ((0, 0, 0), (0,)),
        ((0, 1, 0, 1, 0), (0, 1)),
        ((0,) * 5 + (1,) + (0,) * 5 + (1,) + (0,) * 2, (0,) * 5 + (1,)),
        ((0, 1, 1), (0, 1, 1)),
        ((1, 0, 0, 1, 0, 0), (1, 0, 0)),
    )
    def test_pattern(self, kinds: tuple[int, ...], pattern: tuple[int, ...]) -> None:
        self.assertEqual(LayerKinds(kinds).pattern, pattern)

    def test_layers_and_places(self) -> None:
        kinds = LayerKinds((0, 1, 0, 0, 1))
        self.assertEqual(kinds.count, 2)
        self.assertEqual((kinds.layers(0), kinds.layers(1)), ((0, 2, 3), (1, 4)))
        self.assertEqual([kinds.place(layer) for layer in range(5)], [0, 0, 1, 2, 1])


@pytest.mark.thorough
class FormsTest(parameterized.TestCase):
    @pytest.mark.extended
    def test_one_kind_is_a_call_without_kinds(self) -> None:
        shape = cases.Shape()
        arguments = _arguments(shape)
        want = jax_tkg.transformer_tkg(**arguments, **cases.options(shape))
        tuples = {name: (arguments[name],) for name in PER_KIND}
        options = {**cases.options(shape), "layer_kinds": [0, np.int64(0)]}
        _assert_same(jax_tkg.transformer_tkg(**{**arguments, **tuples}, **options), want)
        stacks = cases.stack({**arguments, **tuples}, (0, 0))
        got = jax_tkg.transformer_tkg(**stacks, **options)
        self.assertEqual(jax.tree.structure(got.K_caches), jax.tree.structure((0,)))

    def test_one_stack_of_all_layers(self) -> None:
        """Kinds of one capacity, that differ in their masks and tables."""
        shape = cases.Shape(L=3, layer_kinds=(1, 0, 1), kinds=((20, 24, True, "first"),))
        arguments = _arguments(shape)
        arguments["position_ids"] = arguments["position_ids"][0]
        options = cases.options(shape)
        want = jax_tkg.transformer_tkg(**arguments, **options)
        got = jax_tkg.transformer_tkg(**cases.stack(arguments), **options)
        self.assertEqual(got.K_caches.shape, (3, 2, 2, 64, 24))
        _assert_same(got._replace(K_caches=list(got.K_caches), V_caches=list(got.V_caches)), want)

    @pytest.mark.extended
    def test_vmap(self) -> None:
        """Stacks of each kind and tuples join the batch."""
        options = cases.options(SHAPE)
        both = [cases.stack(_arguments(seed=0), SHAPE.layer_kinds)]
        changed = cases.stack(_arguments(seed=1), SHAPE.layer_kinds)
        names = ("X", "K_caches", "V_caches", *PER_KIND)
        # The dtype of positions is drawn.
        changed["position_ids"] = jax.tree.map(
            lambda ids, like: ids.astype(like.dtype),
            changed["position_ids"],
            both[0]["position_ids"],
        )
        both.append({**both[0], **{name: changed[name] for name in names}})
        mapped = {
            name: jax.tree.map(lambda *a: np.stack(a), *(b[name] for b in both)) for name in names
        }
        weights = {name: value for name, value in both[0].items() if name not in names}
        call = functools.partial(jax_tkg.transformer_tkg, **weights, **options)
        got = jax.jit(jax.vmap(lambda given: call(**given)))(mapped)
        for index, arguments in enumerate(both):
            want = call(**{name: arguments[name] for name in names})
            _assert_same(jax.tree.map(lambda array, i=index: array[i], got), want, 1e-5)

    @pytest.mark.extended
    def test_donated_stacks_are_updated_in_place(self) -> None:
        """The compiled program copies no stack: what it copies has other shapes."""
        shape = cases.Shape(
            B=1, S=1, q=2, k=1, L=4, layer_kinds=(0, 1, 0, 1), kinds=((30, 40, False, "first"),)
        )
        arguments = cases.stack(_arguments(shape), shape.layer_kinds)
        caches = {name: arguments.pop(name) for name in ("K_caches", "V_caches")}
        call = functools.partial(jax_tkg.transformer_tkg, **cases.options(shape))
        step = jax.jit(lambda given, caches: call(**given, **caches), donate_argnames="caches")
        lines = step.lower(arguments, caches).compile().as_text().splitlines()
        copied = [line for line in lines if " copy(" in line]
        for stack in jax.tree.leaves(caches):
            shown = f"f32[{','.join(map(str, stack.shape))}]"
            self.assertTrue(any(shown in line for line in lines))
            self.assertEmpty([line for line in copied if f"= {shown}" in line])


def put(name: str, value: Any) -> Change:
    return lambda arguments: arguments.update({name: value})


def put_entry(name: str, index: int, change: Callable[[Any], Any]) -> Change:
    def apply(arguments: dict[str, Any]) -> None:
        entries = list(arguments[name])
        entries[index] = change(entries[index])
        arguments[name] = type(arguments[name])(entries)

    return apply


def stacked(*changes: Change) -> Change:
    def apply(arguments: dict[str, Any]) -> None:
        arguments.update(cases.stack(arguments, SHAPE.layer_kinds))
        for change in changes:
            change(arguments)

    return apply


BAD: dict[str, tuple[Change, type[Exception], list[str]]] = {
    "not_integers": (put("layer_kinds", (0, 0, 0.5, 0, 0)), TypeError, ["layer_kinds[2]", "0.5"]),
    "no_sequence": (put("layer_kinds", 2), TypeError, ["layer_kinds:", "tuple", "got 2"]),
    "negative": (put("layer_kinds", (0, 0, -1, 0, 0)), ValueError, ["layer_kinds[2]", "-1"]),
    "unused": (
        put("layer_kinds", (0, 0, 2, 0, 0)),
        ValueError,
        ["layer_kinds:", "kind 0..2", "none of kind 1"],
    ),
    "too_few_layers": (
        put("layer_kinds", (0, 0, 1, 0)),
        ValueError,
        ["layer_kinds:", "num_layers = 5", "got 4"],
    ),
    "tuple_without_kinds": (
        put("layer_kinds", None),
        TypeError,
        ["RoPE_cos:", "needs layer_kinds", "got tuple"],
    ),
    "stacks_without_kinds": (
        stacked(lambda a: a.update({n: a[n][0] for n in PER_KIND}, layer_kinds=None)),
        ValueError,
        ["K_caches:", "a stack for each kind of layers needs layer_kinds", "[4, 2, 2, 64, 24]"],
    ),
    "too_many_entries": (
        lambda a: a.update(mask_cache=(*a["mask_cache"], a["mask_cache"][0])),
        ValueError,
        ["mask_cache:", "each of the 2 kinds", "got 3 entries"],
    ),
    "missing_entry": (
        put_entry("RoPE_sin", 1, lambda table: None),
        TypeError,
        ["RoPE_sin[1]: expected an array, got None"],
    ),
    "entry_shape": (
        put_entry("RoPE_cos", 1, lambda table: table[:, :, :1]),
        ValueError,
        ["RoPE_cos[1]:", "[d/2, B, S]", "[32, 2, 2]", "[32, 2, 1]"],
    ),
    "entry_dtype": (
        put_entry("mask_cache", 1, lambda mask: mask.astype(np.float32)),
        TypeError,
        ["mask_cache[1]:", "boolean or integer", "float32"],
    ),
    "context_over_capacity": (
        put_entry("mask_cache", 0, lambda mask: np.ones((25, 2, 4, 2), bool)),
        ValueError,
        ["mask_cache[0]:", "S_ctx <= S_max = 24 (K_caches of kind 0)", "S_ctx = 25"],
    ),
    "capacity_of_one_layer": (
        put_entry("K_caches", 3, lambda cache: cache[..., :23]),
        ValueError,
        ["K_caches[3] of kind 0:", "[2, 2, 64, 24]", "[2, 2, 64, 23]"],
    ),
    "batch_of_a_kind": (
        put_entry("V_caches", 2, lambda cache: cache[:1]),
        ValueError,
        ["V_caches[2] of kind 1:", "[2, 2, 40, 64]", "[1, 2, 40, 64]"],
    ),
    "too_few_stacks": (
        stacked(lambda a: a.update(K_caches=a["K_caches"][:1])),
        ValueError,
        ["K_caches:", "each of the 2 kinds", "got 1"],
    ),
    "short_stack": (
        stacked(put_entry("V_caches", 0, lambda stack: stack[:3])),
        ValueError,
        ["V_caches[0]:", "at least the 4 layers of kind 0", "got 3"],
    ),
    "rank_of_a_stack": (
        stacked(put_entry("K_caches", 1, lambda stack: stack[0])),
        ValueError,
        ["K_caches[1]:", "5 dimensions", "[2, 2, 64, 40]"],
    ),
    "shape_of_a_stack": (
        stacked(put_entry("K_caches", 1, lambda stack: stack[:, :, :, :32])),
        ValueError,
        ["K_caches[1] (one layer) of kind 1:", "[2, 2, 64, 40]", "[2, 2, 32, 40]"],
    ),
    "two_forms": (
        lambda a: a.update(K_caches=cases.stack(a, SHAPE.layer_kinds)["K_caches"]),
        ValueError,
        ["V_caches:", "form of K_caches, a stack for each kind", "a sequence of arrays"],
    ),
    "positions_of_one_stack": (
        lambda a: a.update({n: np.zeros((5, *a[n][0].shape)) for n in ("K_caches", "V_caches")}),
        ValueError,
        ["position_ids:", "one array for all kinds", "one stack"],
    ),
}


class BadInputTest(parameterized.TestCase):
    @parameterized.named_parameters((name, *case) for name, case in BAD.items())
    def test_bad(self, change: Change, kind: type[Exception], parts: list[str]) -> None:
        arguments = {**_arguments(), **cases.options(SHAPE)}
        change(arguments)
        with self.assertRaises(kind) as caught:
            jax_tkg.transformer_tkg(**arguments)
        for part in parts:
            self.assertIn(part, str(caught.exception))

    def test_aws_kernel_refuses_kinds_by_name(self) -> None:
        with self.assertRaisesRegex(ValueError, "layer_kinds|NKILIB"):
            jax_tkg.transformer_tkg(**_arguments(), **cases.options(SHAPE), implementation="nkilib")


if __name__ == "__main__":
    absltest.main()
