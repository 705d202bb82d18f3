"""Layers with experts: against the oracle, split over ranks, transformed, and refused."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from jax.test_util import check_grads

import jax_tkg
from jax_tkg import bits, reference, sharding
from jax_tkg.call.operand_table import names
from tests import cases

VALUES_PER_SHAPE = 23

NEAR_TIE = {"float32": 1e-4, "bfloat16": 0.04}
"""Scores that differ by less may be chosen in either order: other values are drawn."""

SHAPE = dataclasses.replace(
    cases.EXPERTS, q=1, k=1, d=16, S_ctx=4, S_max=8, B=1, S=1, positions="none"
)
Draw = Callable[[], tuple[list[dict[str, Any]], list[dict[str, Any]]]]


@st.composite
def shapes(draw: st.DrawFn, routing: str) -> cases.Shape:
    """Small models: what is drawn is the experts."""
    dtype = draw(st.sampled_from(("float32", "float32", "bfloat16")))
    E = draw(st.sampled_from((4, 7, 16, 40, 128) if dtype == "float32" else (4, 8)))
    biases = [name for name in cases.EXPERT_OPTIONS if draw(st.booleans())]
    if routing != "sigmoid_topk":
        biases = [name for name in biases if name != "bias_selections"]
    layers: dict[str, Any] = draw(
        st.sampled_from(({"L": 1}, {"L": 2}, {"L": 3, "dense_layers": (0, 2)}))
    )
    if draw(st.booleans()):
        float8 = ("float8_e4m3", None, "float8_e5m2")
        layers["quantized"] = (float8,) * layers["L"]
    return dataclasses.replace(
        SHAPE,
        **layers,
        B=draw(st.sampled_from((1, 1, 2, 4))),
        S=draw(st.integers(1, 3)),
        E=E,
        E_held=E,
        I_expert=draw(st.sampled_from((16, 40, 128))),
        I_shared=draw(st.sampled_from((0, 24))),
        experts_per_token=draw(st.integers(1, min(E, 8))),
        options=tuple(biases),
        routing=routing,
        normalize_expert_weights=draw(st.booleans()),
        routed_scale=draw(st.sampled_from((1.0, 2.5))),
        activation=draw(st.sampled_from(("silu", "gelu", "swiglu_oai"))),
        activation_limit=draw(st.sampled_from((7.0, 0.5))),
        dtype=dtype,
        clamp_bound=0.5,
    )


@functools.lru_cache(maxsize=4)
def _compiled(**options: Any) -> Any:
    return jax.jit(functools.partial(jax_tkg.transformer_tkg, **options))


def _apart(shape: cases.Shape, draw: Draw) -> Any:
    """Arguments and the oracle's answer, of draws without near ties."""
    for _ in range(50):
        weights, inputs = draw()
        gaps: list[float] = []
        answer = cases.expected(shape, weights, inputs, gaps)
        if min(gaps) > NEAR_TIE[shape.dtype]:
            return weights, inputs, answer
    raise AssertionError(f"all draws of {shape} have near ties")


def _arguments(shape: cases.Shape, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any], Any]:
    rng = np.random.default_rng(seed)

    def draw() -> Any:
        return [cases.random_weights(shape, rng)], [cases.random_inputs(shape, rng)]

    (weights,), (inputs,), answer = _apart(shape, draw)
    return weights, inputs, answer


def _check(actual: Any, shape: cases.Shape, inputs: dict[str, Any], answer: Any) -> None:
    hidden, K, V, written = answer
    cases.check(actual, shape, inputs, hidden, K[0], V[0], written)


class DrawnExpertsTest(parameterized.TestCase):
    """3 routings x (2 + 3) drawn shapes x 23 draws of values: 345 cases."""

    @parameterized.product(count=(2, 3), routing=("softmax_topk", "topk_softmax", "sigmoid_topk"))
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "1", "2")
    def test_drawn(self, count: int, routing: str) -> None:
        judged = 0

        @hypothesis.seed(zlib.crc32(f"experts {routing} {count}".encode()))
        @hypothesis.settings(max_examples=count, phases=(hypothesis.Phase.generate,))
        @hypothesis.given(data=st.data())
        def run(data: st.DataObject) -> None:
            nonlocal judged
            shape = data.draw(shapes(routing))
            form = data.draw(st.sampled_from(("cpu", "reference", "bits")))
            stacked = not shape.dense_layers and data.draw(st.booleans())
            rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
            weights = cases.random_weights(shape, rng)
            call = _compiled(
                **cases.options(shape), implementation="reference" if form == "reference" else "cpu"
            )
            for _ in range(VALUES_PER_SHAPE):
                _, (inputs,), answer = _apart(
                    shape, lambda: ([weights], [cases.random_inputs(shape, rng)])
                )
                given = {**weights, **inputs}
                if stacked:
                    given = cases.stack(given)
                if form == "bits":
                    held = {name: given.get(name) for name in names("weight", "router")}
                    given = {**given, **jax.tree.map(bits.as_bits, held)}
                _check(call(**given), shape, inputs, answer)
                judged += 1

        run()
        self.assertEqual(judged, count * VALUES_PER_SHAPE)


class ChoiceTest(parameterized.TestCase):
    @parameterized.product(routing=("softmax_topk", "topk_softmax", "sigmoid_topk"), T=(1, 4))
    @pytest.mark.extended_except("1", "2", "5")
    def test_ties_go_to_the_lowest_expert(self, routing: str, T: int) -> None:
        """Experts 0 and 1 are worse than the others, which are equal: 2 and 3 are chosen."""
        shape = dataclasses.replace(SHAPE, L=1, B=T, E=12, E_held=12, routing=routing)
        call = _compiled(**cases.options(shape))
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        router = np.zeros((shape.H, shape.E), np.float32)
        weights["W_routers"] = [router]
        weights["bias_routers"] = [np.array([[-1.0] * 2 + [1.0] * 10], np.float32)]
        for seed in range(5):
            inputs["X"] = np.random.default_rng(seed).uniform(-1, 1, (T, 1, shape.H))
            inputs["X"] = inputs["X"].astype(np.float32)
            _check(
                call(**weights, **inputs),
                shape,
                inputs,
                cases.expected(shape, [weights], [inputs]),
            )
        changed = {**weights, "W_downs": [weights["W_downs"][0].copy()]}
        changed["W_downs"][0][[0, 1, *range(4, 12)]] = 0
        np.testing.assert_array_equal(
            call(**changed, **inputs).hidden, call(**weights, **inputs).hidden
        )

    @parameterized.parameters("softmax_topk", "topk_softmax", "sigmoid_topk")
    @pytest.mark.extended_except("1", "2")
    def test_near_ties(self, routing: str) -> None:
        """The last expert chosen is better than the next by a few roundings: 3 x 20 cases."""
        shape = dataclasses.replace(
            SHAPE, L=1, E=12, E_held=12, experts_per_token=3, routing=routing
        )
        call = _compiled(**cases.options(shape))
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        weights["W_routers"] = [np.zeros((shape.H, shape.E), np.float32)]
        for _ in range(20):
            weights["bias_routers"] = [cases.near_tie(rng, shape.E, 3)]
            gaps: list[float] = []
            answer = cases.expected(shape, [weights], [inputs], gaps)
            self.assertBetween(min(gaps), 1e-7, 1e-5)
            _check(call(**weights, **inputs), shape, inputs, answer)

    def test_all_tokens_on_one_expert(self) -> None:
        shape = dataclasses.replace(SHAPE, L=1, B=4, S=2, E=16, E_held=16, experts_per_token=1)
        call = _compiled(**cases.options(shape))
        rng = np.random.default_rng(0)
        weights, inputs = cases.random_weights(shape, rng), cases.random_inputs(shape, rng)
        for expert in range(0, 16, 3):
            bias = np.zeros((1, 16), np.float32)
            bias[0, expert] = 30.0
            weights["bias_routers"] = [bias]
            answer = cases.expected(shape, [weights], [inputs])
            _check(call(**weights, **inputs), shape, inputs, answer)


class SplitTest(parameterized.TestCase):
    """2 splits x 2 numbers of ranks x 15 draws of values, of a dense layer and two with experts."""

    @parameterized.product(split=("intermediate", "expert"), ranks=(2, 4))
    @pytest.mark.thorough
    @pytest.mark.extended_except("3")
    def test_against_the_oracle(self, split: str, ranks: int) -> None:
        shape = dataclasses.replace(
            SHAPE,
            L=3,
            B=1 if ranks == 2 else 4,
            E=8,
            E_held=8 // ranks if split == "expert" else 8,
            I_shared=16,
            experts_per_token=3,
            dense_layers=(1,),
            options=tuple(name for name in cases.EXPERT_OPTIONS if name != "bias_selections"),
            quantized=((None,) * 3,) * 2 + (("float8_e4m3",) * 3,),
        )
        specs = sharding.partition_specs(
            "tp", expert_split=split, expert_layers=[shape.has_experts(i) for i in range(3)]
        )
        rng = np.random.default_rng(ranks)
        alike = _alike_on_all_ranks(specs)

        def draw() -> Any:
            weights = [cases.random_weights(shape, rng) for _ in range(ranks)]
            inputs = [cases.random_inputs(shape, rng) for _ in range(ranks)]
            for own, first in ((weights, weights[0]), (inputs, inputs[0])):
                for other in own[1:]:
                    for name, value in first.items():
                        if isinstance(value, list):
                            other[name] = [
                                mine if mine is None or not alike(name, layer) else value[layer]
                                for layer, mine in enumerate(other[name])
                            ]
                        elif alike(name, 0):
                            other[name] = value
            return weights, inputs

        devices = np.asarray(jax.devices("cpu")[:ranks])
        run = None
        for _ in range(15):
            weights, inputs, answer = _apart(shape, draw)
            whole = _joined([{**w, **i} for w, i in zip(weights, inputs, strict=True)], specs)
            run = run or jax.jit(
                jax.shard_map(
                    lambda arguments: tuple(
                        jax_tkg.transformer_tkg(**arguments, **cases.options(shape), axis_name="tp")
                    ),
                    mesh=jax.sharding.Mesh(devices, ("tp",)),
                    in_specs=({name: getattr(specs, name) for name in whole},),
                    out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
                )
            )
            got = run(whole)[0]
            want = answer[0]
            self.assertLess(np.abs(np.asarray(got) - want).max(), 1e-5 * np.abs(want).max())

    def test_groups_that_are_listed(self) -> None:
        """Experts go to the ranks in the order in which their groups list them."""
        shape = dataclasses.replace(SHAPE, L=1, E=8, E_held=4, S=2)
        whole_shape = dataclasses.replace(shape, E_held=8)
        weights, inputs, (hidden, *_) = _arguments(whole_shape)
        groups = [[2, 0], [1, 3]]
        halves = {
            name: np.stack([weights[name][0][4 * half : 4 * half + 4] for half in (1, 0, 0, 1)])
            for name in ("W_gates", "W_ups", "W_downs")
        }
        weights = {**weights, "W_outs": [weights["W_outs"][0] / 2]}

        def run(halves: Any) -> jax.Array:
            own = {name: [half[0]] for name, half in halves.items()}
            arguments = {**weights, **inputs, **own}
            out = jax_tkg.transformer_tkg(
                **arguments, **cases.options(shape), replica_groups=groups
            )
            return out.hidden[None]

        P = jax.sharding.PartitionSpec
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:4]), ("ranks",))
        sharded = jax.shard_map(run, mesh=mesh, in_specs=P("ranks"), out_specs=P("ranks"))
        for got in np.asarray(jax.jit(sharded)(halves)):
            self.assertLess(np.abs(got - hidden).max(), 1e-5 * np.abs(hidden).max())


def _alike_on_all_ranks(specs: Any) -> Callable[[str, int], bool]:
    def alike(name: str, layer: int) -> bool:
        spec = getattr(specs, name)
        return "tp" not in (spec[layer] if isinstance(spec, list) else spec)

    return alike


def _joined(ranks: list[dict[str, Any]], specs: Any) -> dict[str, Any]:
    """The whole model's arguments: every rank's arrays side by side along the split axes."""

    def one(spec: Any, arrays: list[Any]) -> Any:
        if arrays[0] is None or "tp" not in spec:
            return arrays[0]
        return np.concatenate(arrays, axis=list(spec).index("tp"))

    whole: dict[str, Any] = {}
    for name, value in ranks[0].items():
        spec = getattr(specs, name)
        if isinstance(value, list):
            by_layer = spec if isinstance(spec, list) else [spec] * len(value)
            whole[name] = [
                one(by_layer[layer], [rank[name][layer] for rank in ranks])
                for layer in range(len(value))
            ]
        else:
            whole[name] = one(spec, [rank[name] for rank in ranks])
    return whole


class TransformedTest(parameterized.TestCase):
    @pytest.mark.extended
    def test_vmap(self) -> None:
        shape = dataclasses.replace(SHAPE, L=1, S=2)
        weights, inputs, _ = _arguments(shape)
        rows = [inputs, *(cases.random_inputs(shape, np.random.default_rng(s)) for s in (1, 2))]
        call = functools.partial(jax_tkg.transformer_tkg, **weights, **cases.options(shape))
        several = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
        got = jax.jit(jax.vmap(lambda row: call(**row).hidden))(several)
        for index, row in enumerate(rows):
            np.testing.assert_allclose(got[index], call(**row).hidden, atol=1e-5)

    @parameterized.parameters(1, 6)
    @pytest.mark.extended_except("1")
    def test_gradients(self, S: int) -> None:
        """Of few tokens and of many; a bias keeps the experts that are chosen the same."""
        shape = dataclasses.replace(SHAPE, L=1, S=S, routing="topk_softmax", I_expert=8, I_shared=8)
        weights, inputs, _ = _arguments(shape)
        weights["bias_routers"] = [-5 * np.abs(np.arange(8, dtype=np.float32) - 3)[None]]
        chosen = {name: weights[name] for name in ("W_gates", "W_downs", "W_routers")}
        rest = {name: value for name, value in {**weights, **inputs}.items() if name not in chosen}

        def hidden(chosen: Any) -> jax.Array:
            return reference.transformer_tkg(**rest, **chosen, **cases.options(shape)).hidden

        check_grads(hidden, (chosen,), order=1, modes=("fwd", "rev"), eps=1e-3, rtol=3e-2)

    def test_strict_promotion_and_explicit_mesh(self) -> None:
        shape = dataclasses.replace(
            SHAPE, L=1, B=2, options=cases.EXPERT_OPTIONS, routing="sigmoid_topk"
        )
        weights, inputs, answer = _arguments(shape)
        mesh = jax.make_mesh((2,), ("dp",), (jax.sharding.AxisType.Explicit,))
        specs = sharding.partition_specs(None, "dp", expert_split="intermediate")
        with (
            jax.set_mesh(mesh),
            jax.numpy_dtype_promotion("strict"),
            jax.numpy_rank_promotion("raise"),
        ):
            given = {
                name: jax.tree.map(
                    lambda array, name=name: jax.device_put(
                        array, jax.sharding.NamedSharding(mesh, getattr(specs, name))
                    ),
                    value,
                )
                for name, value in {**weights, **inputs}.items()
            }
            got = _compiled(**cases.options(shape))(**given)
        _check(jax.tree.map(np.asarray, got), shape, inputs, answer)


def _put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update({name: value})


def _put_layer(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = [arguments[name][0], value]

    return change


def _zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], type[Exception], str]] = {
    "no_router": (_put_layer("W_routers", None), TypeError, r"W_routers\[1\]: .*W_gates\[1\] has"),
    "no_routers": (_put("W_routers", None), TypeError, "W_routers: expected an array"),
    "router_dtype": (
        _put_layer("W_routers", _zeros(128, 8, dtype=np.float16)),
        TypeError,
        r"W_routers\[1\]: expected dtype float32, got float16",
    ),
    "router_size": (
        _put_layer("W_routers", _zeros(128, 9)),
        ValueError,
        r"W_routers\[1\]: expected shape \[H, E\] = \[128, 8\], got \[128, 9\]",
    ),
    "dense_up": (
        _put_layer("W_ups", _zeros(128, 48)),
        ValueError,
        r"W_ups\[1\]: expected \[E_held, H, I_expert\], because W_gates\[1\] has 3 dimensions",
    ),
    "expert_down": (
        _put_layer("W_downs", _zeros(8, 40, 128)),
        ValueError,
        r"W_downs\[1\]: expected shape .* = \[8, 48, 128\], got \[8, 40, 128\]",
    ),
    "held": (
        lambda arguments: arguments.update(
            {name: [w[:3] for w in arguments[name]] for name in ("W_gates", "W_ups", "W_downs")}
        ),
        ValueError,
        r"W_gates: expected E_held = E = 8 \(W_routers\) in .*, got E_held = 3",
    ),
    "bias_size": (
        _put("bias_downs", [_zeros(8, 128), _zeros(8, 127)]),
        ValueError,
        r"bias_downs\[1\]: expected shape \[E_held, H\] = \[8, 128\], got \[8, 127\]",
    ),
    "bias_selections": (
        _put("bias_selections", [_zeros(1, 8), None]),
        ValueError,
        r'bias_selections\[0\]: expected None with routing "softmax_topk"',
    ),
    "part_of_a_shared_expert": (
        _put("W_shared_ups", [_zeros(128, 16), None]),
        TypeError,
        r"W_shared_gates: expected an array beside W_shared_ups\[0\], got None",
    ),
    "no_count": (
        _put("experts_per_token", None),
        TypeError,
        r"experts_per_token: expected an integer in 1..E = 8 \(W_routers\), got None",
    ),
    "count_above": (
        _put("experts_per_token", 9),
        ValueError,
        "experts_per_token: .*E = 8 .*got 9",
    ),
    "count_zero": (_put("experts_per_token", 0), ValueError, "experts_per_token: .* at least 1"),
    "routing": (_put("routing", "softmax"), ValueError, "routing: expected one of .softmax_topk."),
    "routed_scale": (_put("routed_scale", 0), ValueError, "routed_scale: expected at least"),
    "normalize": (
        _put("normalize_expert_weights", 1),
        TypeError,
        "normalize_expert_weights: expected True or False, got 1",
    ),
    "float8_without_scale": (
        _put_layer("W_gates", _zeros(8, 128, 48, dtype="float8_e4m3")),
        ValueError,
        r"W_gate_scales: expected a scale for W_gates\[1\]",
    ),
}


class BadInputTest(parameterized.TestCase):
    @parameterized.parameters(*BAD)
    def test_refused(self, name: str) -> None:
        change, error, message = BAD[name]
        rng = np.random.default_rng(0)
        arguments = {**cases.random_weights(SHAPE, rng), **cases.random_inputs(SHAPE, rng)}
        arguments.update(cases.options(SHAPE))
        change(arguments)
        with self.assertRaisesRegex(error, message):
            jax_tkg.transformer_tkg(**arguments)

    def test_without_experts(self) -> None:
        shape = cases.Shape(L=1)
        rng = np.random.default_rng(0)
        arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
        arguments.update(cases.options(shape))
        with self.assertRaisesRegex(ValueError, "experts_per_token: expected None, because no la"):
            jax_tkg.transformer_tkg(**{**arguments, "experts_per_token": 2})
        with self.assertRaisesRegex(
            ValueError, r"bias_ups\[0\]: expected None, because W_gates\[0"
        ):
            jax_tkg.transformer_tkg(**{**arguments, "bias_ups": [_zeros(8, 128)]})

    def test_no_rank_holds_all_experts(self) -> None:
        """Of two ranks each has 3 of 8 experts."""
        weights, inputs, _ = _arguments(SHAPE)
        for name in ("W_gates", "W_ups", "W_downs"):
            weights[name] = [weight[:3] for weight in weights[name]]
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
        P = jax.sharding.PartitionSpec
        run = jax.shard_map(
            lambda x: (
                jax_tkg.transformer_tkg(
                    **{**weights, **inputs, "X": x}, **cases.options(SHAPE), axis_name="tp"
                ).hidden
            ),
            mesh=mesh,
            in_specs=P(),
            out_specs=P(),
        )
        with self.assertRaisesRegex(ValueError, "or E / ranks = 8 / 2 = 4 in .*, got E_held = 3"):
            run(inputs["X"])


if __name__ == "__main__":
    absltest.main()
