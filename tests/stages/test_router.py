"""The router: which experts the tokens choose, and with what weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.call.arguments import Parameters
from jax_tkg.kernels.layer_tensor import Weight, layer_tensor
from jax_tkg.kernels.rms_norm import Normed
from jax_tkg.kernels.router import Choice, Routing, router_logits, router_sums
from jax_tkg.kernels.sizes import Context
from jax_tkg.reference.router import route
from tests.stages import drawing
from tests.stages.kernel_stages import KernelStages
from tests.stages.small_kernels import load_share, same, store

NEAR_TIE = 1e-4
"""Scores that differ by less may be chosen in either order."""


def _by_reference(
    x: np.ndarray,
    router: np.ndarray,
    bias: np.ndarray | None,
    selection: np.ndarray | None,
    parameters: Parameters,
) -> np.ndarray:
    """[T, E]: the weights of the chosen experts, 0 of others."""
    chosen, weights = map(np.asarray, route(x, router, bias, selection, parameters))
    found = np.zeros((x.shape[0], router.shape[1]), np.float32)
    np.put_along_axis(found, chosen, weights, axis=1)
    return found


def _by_kernel(
    stages: KernelStages,
    x: np.ndarray,
    router: np.ndarray,
    bias: np.ndarray | None,
    selection: np.ndarray | None,
    parameters: Parameters,
) -> np.ndarray:
    """The same on the cores of `stages`, which must agree."""
    T, H = x.shape
    E = router.shape[1]

    def body(context: Context, x: Any, order: Any, router: Any, bias: Any, selection: Any) -> Any:
        routing = Routing(
            parameters.experts_per_token,
            parameters.routing,
            parameters.normalize_expert_weights,
            parameters.routed_scale,
            E,
            1,
            order,
        )
        weight = Weight((router,), bias=(bias,)).layer(0)
        normed = Normed(load_share(x, context), None)
        sums = router_sums(normed, weight, routing, context)
        (logits,) = router_logits(sums, normed, routing, context)
        choice = Choice(logits, layer_tensor((selection,), 0), routing)
        return store(choice.weights(routing), context)

    order = np.arange(E, 0, -1, dtype=np.float32)[None]
    given = {
        "x": stages.residual(x),
        "order": order,
        "router": router,
        "bias": bias,
        "selection": selection,
    }
    (weights,) = stages.run(body, [given], B=T, H=H, dtype=x.dtype.name)
    return same(weights)


def _expected(
    x: np.ndarray,
    router: np.ndarray,
    bias: np.ndarray | None,
    selection: np.ndarray | None,
    parameters: Parameters,
) -> tuple[np.ndarray, float]:
    """The weights in float64, and the least distance of a chosen score from one that is not."""
    logits = drawing.wide(x) @ drawing.wide(router)
    if bias is not None:
        logits = logits + drawing.wide(bias)
    values, scores = np.exp(logits - logits.max(axis=1, keepdims=True)), logits
    if parameters.routing == "softmax_topk":
        values = values / values.sum(axis=1, keepdims=True)
    elif parameters.routing == "sigmoid_topk":
        values = 1 / (1 + np.exp(-logits))
        scores = values if selection is None else values + drawing.wide(selection)
    k = parameters.experts_per_token
    order = np.argsort(-scores, axis=1, kind="stable")
    weights = np.zeros_like(values)
    np.put_along_axis(weights, order[:, :k], np.take_along_axis(values, order[:, :k], 1), axis=1)
    if parameters.normalize_expert_weights or parameters.routing == "topk_softmax":
        weights = weights / weights.sum(axis=1, keepdims=True)
    ordered = np.take_along_axis(scores, order, axis=1)
    gaps = ordered[:, k - 1 : k] - ordered[:, k : k + 1]
    return weights * parameters.routed_scale, gaps.min(initial=1.0)


class RouterTest(parameterized.TestCase):
    @parameterized.product(
        implementation=drawing.ONE_FORMULATION,
        method=("softmax_topk", "topk_softmax", "sigmoid_topk"),
    )
    @pytest.mark.extended_except("2", "3", "4", "5", "6", "7")
    def test_drawn(self, implementation: str, method: str) -> None:
        @drawing.examples(f"router {method}", 4)
        def run(data: st.DataObject) -> None:
            T = data.draw(st.sampled_from((1, 3, 128)))
            E = data.draw(st.sampled_from((3, 8, 128, 200, 512)))
            parameters = Parameters(
                1,
                experts_per_token=data.draw(st.integers(1, min(E, 20))),
                routing=method,
                normalize_expert_weights=data.draw(st.booleans()),
                routed_scale=data.draw(st.sampled_from((1.0, 2.5))),
            )
            rng = drawing.generator(data)
            dtype, held = data.draw(
                st.sampled_from(
                    (("float32", "float32"), ("bfloat16",) * 2, ("bfloat16", "float32"))
                )
            )
            has_bias = data.draw(st.booleans())
            for _ in range(50):
                x = drawing.uniform(rng, T, 256, dtype=dtype)
                router = drawing.uniform(rng, 256, E, dtype=held)
                bias = drawing.uniform(rng, 1, E) if has_bias else None
                selection = drawing.uniform(rng, 1, E) if method == "sigmoid_topk" else None
                given = (x, router, bias, selection, parameters)
                want, gap = _expected(*given)
                if gap >= NEAR_TIE:
                    break
            else:
                raise AssertionError(f"all draws of {T} tokens and {E} experts have near ties")
            if implementation == "reference":
                got = _by_reference(*given)
            else:
                got = _by_kernel(drawing.IMPLEMENTATIONS[implementation], *given)
            drawing.assert_close(got, want, "float32")

        del run


if __name__ == "__main__":
    absltest.main()
