"""The tables against the public function, and layouts against arithmetic done by hand."""

from __future__ import annotations

import inspect
from typing import Any

import hypothesis
import hypothesis.strategies as st
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import sharding, weights
from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.dimensions import SOLVING_ORDER, infer_sizes
from jax_tkg.call.layouts import Axis, Layout
from jax_tkg.call.operand_table import BY_NAME, OPERANDS
from jax_tkg.call.options import OPTIONS
from jax_tkg.call.signature import SIGNATURE


class SignatureTest(absltest.TestCase):
    def test_the_public_function_has_the_tables_signature(self) -> None:
        public = inspect.signature(jax_tkg.transformer_tkg)
        self.assertEqual(list(public.parameters), list(SIGNATURE.parameters))
        for name, parameter in SIGNATURE.parameters.items():
            given = public.parameters[name]
            self.assertEqual((given.kind, given.default), (parameter.kind, parameter.default), name)

    def test_every_argument_is_documented(self) -> None:
        documentation = inspect.getdoc(jax_tkg.transformer_tkg)
        for name in SIGNATURE.parameters:
            self.assertIn(f"\n  {name}: ", documentation)

    def test_containers_have_the_tables_fields(self) -> None:
        operands = [row.name for row in OPERANDS]
        self.assertEqual(list(Operands.__dataclass_fields__), operands)
        self.assertEqual(list(Parameters.__dataclass_fields__), [o.name for o in OPTIONS])
        self.assertEqual(
            list(sharding.TransformerTkgSpecs.__dataclass_fields__),
            [*operands, "hidden", "candidates"],
        )
        per_layer = {row.name for row in OPERANDS if row.per_layer and "cache" not in row.kind}
        self.assertEqual(set(weights.TransformerWeights.__dataclass_fields__), per_layer)


SIZES = {"B": 2, "S": 3, "H": 128, "I": 256, "d": 64, "q": 6, "k": 2, "S_ctx": 20, "S_max": 24}


class LayoutTest(parameterized.TestCase):
    @parameterized.parameters(
        ("[H, (q + 2k)*d]", (128, 640), "[128, (6 + 2*2)*64]"),
        ("[d/2, B, S]", (32, 2, 3), "[64/2, 2, 3]"),
        ("[128, I]", (128, 256), "[128, 256]"),
    )
    def test_evaluated(self, text: str, shape: tuple[int, ...], printed: str) -> None:
        layout = Layout(text)
        self.assertEqual(layout.shape(SIZES), shape)
        self.assertEqual(layout.with_sizes(SIZES), printed)

    @parameterized.parameters(
        ("(q + 2k)*d", "q", 640, 6),
        ("(q + 2k)*d", "k", 640, 2),
        ("(q + 2k)*d", "d", 640, 64),
        ("d/2", "d", 32, 64),
        ("(q + 2k)*d", "k", 500, None),
        ("q*d", "q", -64, None),
    )
    def test_solved(self, text: str, letter: str, size: int, value: int | None) -> None:
        self.assertEqual(Axis(text).solve(letter, SIZES, size), value)

    def test_axes_that_are_split(self) -> None:
        """Written down by hand, layout by layout."""
        expected: dict[str, tuple[int | None, int | None]] = {
            # name: (axis of the batch, axis split over tensor-parallel ranks)
            "X": (0, None),
            "W_qkvs": (None, 1),
            "W_outs": (None, 0),
            "W_gates": (None, 1),
            "W_ups": (None, 1),
            "W_downs": (None, 0),
            "W_gamma_qkvs": (None, None),
            "W_gamma_mlps": (None, None),
            "K_caches": (0, 1),
            "V_caches": (0, 1),
            "RoPE_cos": (1, None),
            "RoPE_sin": (1, None),
            "mask_cache": (1, 2),
            "mask_active": (1, 2),
            "position_ids": (0, None),
            "W_gate_scales": (None, 1),
            "W_up_scales": (None, 1),
            "W_down_scales": (None, None),
            "bias_qkvs": (None, 1),
            "bias_outs": (None, None),
            "W_gamma_qs": (None, None),
            "W_gamma_ks": (None, None),
            "W_gamma_post_attentions": (None, None),
            "W_gamma_post_mlps": (None, None),
            "sinks": (None, 1),
            "W_routers": (None, None),
            "bias_routers": (None, None),
            "bias_selections": (None, None),
            "bias_gates": (None, 1),
            "bias_ups": (None, 1),
            "bias_downs": (None, None),
            "W_shared_gates": (None, 1),
            "W_shared_ups": (None, 1),
            "W_shared_downs": (None, 0),
            "context_lengths": (0, None),
            "context_starts": (0, None),
            "block_tables": (0, None),
            "k_scales": (None, None),
            "v_scales": (None, None),
            "W_gamma_final": (None, None),
            "W_head": (None, 1),
        }
        self.assertEqual({r.name: (r.batch_axis, r.tensor_axis) for r in OPERANDS}, expected)


@st.composite
def sizes_of_calls(draw: Any) -> dict[str, int]:
    k = draw(st.integers(1, 4))
    S_max = draw(st.integers(8, 64))
    return {
        "B": draw(st.integers(1, 5)),
        "S": draw(st.integers(1, 8)),
        "H": 128 * draw(st.integers(1, 4)),
        "I": 128 * draw(st.integers(1, 4)),
        "d": 2 * draw(st.integers(1, 64)),
        "q": k * draw(st.integers(1, 4)),
        "k": k,
        "S_ctx": draw(st.integers(8, S_max)),
        "S_max": S_max,
        "n": draw(st.integers(1, 4)),
        # Flat caches show no blocks.
        "blocks": 0,
        "block_len": 0,
        # Dense layers have no experts, and a call without a head no vocabulary.
        **dict.fromkeys(("E", "E_held", "I_expert", "I_shared", "V"), 0),
    }


class InferenceTest(absltest.TestCase):
    @hypothesis.given(sizes_of_calls(), st.data())
    def test_one_wrong_array_changes_nothing(self, sizes: dict[str, int], data: Any) -> None:
        """Sizes are those of the call, whichever array has one axis wrong."""
        shapes = {row.name: row.layout.shape(sizes) for row in OPERANDS if not row.needs_experts}
        self.assertEqual(infer_sizes(tuple(shapes.items())), {x: sizes[x] for x in SOLVING_ORDER})
        # Letters that fewer than three arrays show cannot be outvoted.
        name = data.draw(st.sampled_from([n for n in shapes if BY_NAME[n].kind != "cache"]))
        shape = list(shapes[name])
        axis = data.draw(st.integers(0, len(shape) - 1))
        shape[axis] += data.draw(st.integers(1, 3))
        found = infer_sizes(tuple({**shapes, name: tuple(shape)}.items()))
        for letter in set(SOLVING_ORDER) - {"S_ctx", "n"}:
            self.assertEqual(found[letter], sizes[letter], (letter, name, shape))


if __name__ == "__main__":
    absltest.main()
