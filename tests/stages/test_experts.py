"""Experts: the router's choice and weights, and the sum of the chosen experts' results."""

from __future__ import annotations

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests import cases
from tests.stages import drawing
from tests.stages.kernel_experts import RoutingCase, run_experts

METHODS = ("softmax_topk", "topk_softmax", "sigmoid_topk")
NEAR_TIE = 1e-4
"""Scores that differ by less may be chosen in either order."""

Arrays = dict[str, np.ndarray | None]


def _arrays(
    rng: np.random.Generator,
    case: RoutingCase,
    H: int,
    I: int,  # noqa: E741
    dtype: str,
    biases: bool,
    float8: str | None,
) -> Arrays:
    E, held = case.E, case.held
    arrays: Arrays = {"W_router": drawing.uniform(rng, H, E, dtype=dtype)}
    for name, rows, columns in (("gate", H, I), ("up", H, I), ("down", I, H)):
        weights = [cases.projection(rng, rows, columns) for _ in range(held)]
        if float8 is None:
            arrays[f"W_{name}"] = np.stack(weights).astype(drawing.kind(dtype))
        else:
            pairs = [cases.quantize(weight, float8, 1) for weight in weights]
            arrays[f"W_{name}"] = np.stack([weight for weight, _ in pairs])
            arrays[f"{name}_scale"] = np.stack([scale for _, scale in pairs])
        if biases:
            arrays[f"bias_{name}"] = drawing.uniform(rng, held, columns, dtype=dtype)
    if biases:
        arrays["bias_router"] = drawing.uniform(rng, 1, E)
    if case.method == "sigmoid_topk":
        arrays["bias_selection"] = drawing.uniform(rng, 1, E)
    return arrays


def _scores(x: np.ndarray, arrays: Arrays, case: RoutingCase) -> tuple[np.ndarray, np.ndarray]:
    """What experts are selected by, and the values that become weights; [T, E] each."""
    logits = x @ drawing.wide(arrays["W_router"])
    if arrays.get("bias_router") is not None:
        logits = logits + drawing.wide(arrays["bias_router"])
    if case.method == "sigmoid_topk":
        values = 1 / (1 + np.exp(-logits))
        return values + drawing.wide(arrays["bias_selection"]), values
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return logits, values / values.sum(axis=1, keepdims=True)


def _expected(
    x: np.ndarray, arrays: Arrays, case: RoutingCase, activation: str, clamp: float
) -> np.ndarray:
    x = drawing.wide(x)
    scores, values = _scores(x, arrays, case)
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, : case.chosen]

    def product(rows: np.ndarray, name: str, expert: int) -> np.ndarray:
        weight = arrays[f"W_{name}"]
        assert weight is not None
        factor = np.ones(())
        scale = arrays.get(f"{name}_scale")
        if scale is not None:
            rows, factor = rows.clip(-clamp, clamp), drawing.wide(scale[expert, 0])
        out = rows @ drawing.wide(weight[expert]) * factor
        bias = arrays.get(f"bias_{name}")
        return out if bias is None else out + drawing.wide(bias[expert])

    total = np.zeros_like(x)
    for token, experts in enumerate(chosen):
        weights = values[token, experts]
        if case.normalize or case.method == "topk_softmax":
            weights = weights / weights.sum()
        for weight, number in zip(weights * case.scale, experts, strict=True):
            expert = number - case.first
            if 0 <= expert < case.held:
                gate = product(x[token], "gate", expert)
                up = product(x[token], "up", expert)
                if activation == "swiglu_oai":
                    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0) + 1
                    hidden = gate / (1 + np.exp(-1.702 * gate)) * up
                else:
                    hidden = gate / (1 + np.exp(-gate)) * up
                total[token] += weight * product(hidden, "down", expert)
    return total


def _near_tie(x: np.ndarray, arrays: Arrays, case: RoutingCase) -> bool:
    """Whether a rounding error could change which experts a token chooses."""
    scores, _ = _scores(drawing.wide(x), arrays, case)
    ordered = -np.sort(-scores, axis=1)
    if case.chosen == case.E:
        return False
    gaps = ordered[:, case.chosen - 1] - ordered[:, case.chosen]
    return bool(gaps.min() < NEAR_TIE)


def _without_near_tie(
    rng: np.random.Generator, T: int, H: int, dtype: str, arrays: Arrays, case: RoutingCase
) -> np.ndarray:
    for _ in range(50):
        x = drawing.uniform(rng, T, H, dtype=dtype)
        if not _near_tie(x, arrays, case):
            return x
    raise AssertionError(f"all draws of {case} have near ties")


class ExpertsTest(parameterized.TestCase):
    @parameterized.product(count=(2, 3), implementation=drawing.KERNELS, method=METHODS)
    @pytest.mark.extended_except("2", "3", "4")
    def test_drawn(self, count: int, implementation: str, method: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"experts {method} {count}", count)
        def run(data: st.DataObject) -> None:
            T = data.draw(st.sampled_from((1, 1, 2, 5, 40)))
            H = drawing.chunks(data, 3)
            I = data.draw(st.sampled_from((96, 128, 360)))  # noqa: E741
            ranks = data.draw(st.sampled_from((1, 2)))
            E = ranks * data.draw(st.sampled_from((2, 8, 20, 70)))
            chosen = data.draw(st.integers(1, min(E, 10)))
            rank = data.draw(st.integers(0, ranks - 1))
            normalize = data.draw(st.booleans())
            scale = data.draw(st.sampled_from((1.0, 2.5)))
            held = E // ranks
            case = RoutingCase(chosen, method, normalize, scale, E, held, rank * held)
            dtype = data.draw(st.sampled_from(drawing.DTYPES))
            float8 = data.draw(st.sampled_from((None, None, "float8_e4m3")))
            activation = data.draw(st.sampled_from(("silu", "swiglu_oai")))
            rng = drawing.generator(data)
            arrays = _arrays(rng, case, H, I, dtype, data.draw(st.booleans()), float8)
            x = _without_near_tie(rng, T, H, dtype, arrays, case)
            clamp = 0.5 if float8 else 0.0
            got = run_experts(stages, x, arrays, case, activation, clamp)
            drawing.assert_close(got, _expected(x, arrays, case, activation, clamp), dtype)

        del run

    @parameterized.parameters(*drawing.KERNELS)
    def test_ties_go_to_the_lowest_expert(self, implementation: str) -> None:
        """Of twelve experts with equal logits the first three that are not worse."""
        rng = np.random.default_rng(0)
        case = RoutingCase(3, "topk_softmax", True, 1.0, 12, 12, 0)
        arrays = _arrays(rng, case, 128, 128, "float32", False, None)
        # Multiples of 1/8, whose sums are exact: NumPy's product may add up equal columns in
        # different orders, and then logits that should tie do not.
        router = np.repeat(np.round(8 * drawing.uniform(rng, 128, 1)) / 8, 12, axis=1)
        router[:, :2] = 0.0
        arrays["W_router"] = router
        x = np.round(8 * drawing.uniform(rng, 2, 128)) / 8
        # The others' logits are above those of the first two.
        x *= np.sign(x @ router[:, 2:3])
        got = run_experts(drawing.IMPLEMENTATIONS[implementation], x, arrays, case)
        drawing.assert_close(got, _expected(x, arrays, case, "silu", 0.0), "float32")

    @parameterized.parameters(*drawing.KERNELS)
    def test_layer_of_stacks(self, implementation: str) -> None:
        """Experts of the second layer of three, at run-time addresses in all layers' tensors."""
        rng = np.random.default_rng(1)
        case = RoutingCase(2, "softmax_topk", True, 1.0, 16, 8, 8)
        arrays = _arrays(rng, case, 256, 128, "float32", True, "float8_e4m3")
        others = _arrays(rng, case, 256, 128, "float32", True, "float8_e4m3")
        stacks: Arrays = {}
        for name, array in arrays.items():
            other = others[name]
            assert array is not None
            assert other is not None
            of_experts = array.shape[0] == case.held
            stacks[name] = np.stack([other, array, other]) if of_experts else array
        x = drawing.uniform(rng, 3, 256)
        stages = drawing.IMPLEMENTATIONS[implementation]
        got = run_experts(stages, x, stacks, case, clamp_bound=0.5, layer=1)
        drawing.assert_close(got, _expected(x, arrays, case, "silu", 0.5), "float32")


if __name__ == "__main__":
    absltest.main()
