"""The kernel's layers with experts, in the simulator against the oracle; and what they read."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg import simulator
from jax_tkg.simulator.timing.pricing import moved
from tests import cases, parallel_cases
from tests.kernels import launch
from tests.stages import drawing

DRAWS = {"few": 3, "many": 17}
"""Of a test, with other seeds; those of `make test` are few."""

SHAPE = dataclasses.replace(cases.EXPERTS, q=1, k=1, d=32, S_ctx=4, S_max=8, B=1, S=1)


def _functions(result: simulator.Result) -> set[tuple[str, str]]:
    """The kernel's functions that ran instructions, as (file, function)."""
    return {
        function
        for instruction in itertools.chain.from_iterable(result.record.streams.values())
        for function in instruction.functions
    }


@st.composite
def shapes(draw: st.DrawFn, routing: str, ranks: int) -> cases.Shape:
    dtype = draw(st.sampled_from(("float32", "float32", "bfloat16")))
    E = ranks * draw(st.sampled_from((3, 8, 70) if dtype == "float32" else (2, 4)))
    biases = [name for name in cases.EXPERT_OPTIONS if draw(st.booleans())]
    if routing != "sigmoid_topk":
        biases = [name for name in biases if name != "bias_selections"]
    layers: dict[str, Any] = draw(
        st.sampled_from(({"L": 1}, {"L": 2}, {"L": 3, "dense_layers": (0, 2)}))
    )
    if draw(st.integers(0, 2)) == 0:
        layers["quantized"] = (("float8_e4m3", None, "float8_e5m2"),) * layers["L"]
    return dataclasses.replace(
        SHAPE,
        **layers,
        H=draw(st.sampled_from((128, 256, 384))),
        B=draw(st.sampled_from((1, 1, 2, 3))),
        S=draw(st.sampled_from((1, 1, 2))),
        E=E,
        E_held=draw(st.sampled_from((E, E // ranks))),
        I_expert=draw(st.sampled_from((16, 96, 128, 200))),
        I_shared=draw(st.sampled_from((0, 0, 24))),
        experts_per_token=draw(st.integers(1, min(E, 10))),
        options=tuple(biases),
        routing=routing,
        normalize_expert_weights=draw(st.booleans()),
        routed_scale=draw(st.sampled_from((1.0, 2.5))),
        activation=draw(st.sampled_from(("silu", "gelu", "swiglu_oai"))),
        activation_limit=draw(st.sampled_from((7.0, 0.5))),
        dtype=dtype,
        clamp_bound=0.5,
    )


class NearTieTest(parameterized.TestCase):
    @parameterized.product(routing=("softmax_topk", "topk_softmax", "sigmoid_topk"), cores=(1, 2))
    def test_near_ties(self, routing: str, cores: int) -> None:
        """The last expert chosen is better than the next by a few roundings: 6 x 2 cases."""
        shape = dataclasses.replace(
            SHAPE, L=1, E=12, E_held=12, I_expert=16, experts_per_token=3, routing=routing
        )
        for seed in range(2):
            (row,) = parallel_cases.random_ranks(shape, 1, 1, seed)
            row[0]["W_routers"] = [np.zeros((shape.H, shape.E), np.float32)]
            row[0]["bias_routers"] = [cases.near_tie(np.random.default_rng(seed), shape.E, 3)]
            hidden, K, V, written = cases.expected(shape, row, row)
            (output,), _ = launch.run(shape, row, cores=cores)
            cases.check(output, shape, row[0], hidden, K[0], V[0], written)


class DrawnTest(parameterized.TestCase):
    """3 routings x 2 numbers of ranks x 17 draws: 102 cases; and three times three."""

    @parameterized.parameters(
        ("softmax_topk", 1, "few"),
        ("topk_softmax", 2, "few"),
        ("sigmoid_topk", 1, "few"),
        *itertools.product(("softmax_topk", "topk_softmax", "sigmoid_topk"), (1, 2), ("many",)),
    )
    @pytest.mark.thorough
    @pytest.mark.extended_except("0", "1", "2")
    def test_drawn(self, routing: str, ranks: int, draws: str) -> None:
        judged = 0
        few = "few " if draws == "few" else ""

        @drawing.examples(f"{few}kernel experts {routing} {ranks}", DRAWS[draws])
        def run(data: st.DataObject) -> None:
            nonlocal judged
            shape = data.draw(shapes(routing, ranks))
            how: dict[str, Any] = {"cores": data.draw(st.sampled_from((1, 2)))}
            how["stacked"] = not shape.dense_layers and data.draw(st.booleans())
            how["on_chip"] = data.draw(st.booleans())
            launch.check(shape, ranks, data.draw(st.integers(0, 1 << 20)), **how)
            judged += 1

        del run
        self.assertEqual(judged, DRAWS[draws])


class NarrowTest(parameterized.TestCase):
    """Experts whose features share tiles: 128 and 64 and 32, of one or two experts at a time."""

    @parameterized.parameters(
        # An odd number of passes on each core; experts that are absent.
        (32, 256, 3, 1, 12, "float32"),
        (64, 128, 2, 2, 8, "float32"),
        (96, 256, 3, 2, 12, "bfloat16"),
        # Gate and up of two experts in one buffer each.
        (192, 512, 1, 2, 16, "bfloat16"),
        # Of one expert at a time: 2 * 8 * 160 and not 4 * 8 * 160 elements of 4 bytes.
        (160, 512, 2, 2, 8, "float32"),
        (224, 128, 2, 1, 8, "float32"),
        # All experts have a pass of their own.
        (96, 128, 4, 2, 8, "float32"),
    )
    @pytest.mark.extended_except("2", "3", "4")
    def test_shared_tiles(
        self, I_expert: int, H: int, T: int, cores: int, E: int, dtype: str
    ) -> None:
        for biased in (False, True):
            shape = dataclasses.replace(
                SHAPE, B=T, H=H, E=E, E_held=E, I_expert=I_expert, L=1, experts_per_token=3,
                options=("bias_downs",) if biased else (), dtype=dtype,
            )  # fmt: skip
            result = launch.check(shape, 1, 0, cores=cores, record=True)
            self.assertIn(("narrow_experts", "expand"), _functions(result))

    def test_experts_of_other_ranks(self) -> None:
        """Passes that have none; also the last of a core, alone in its group."""
        shape = dataclasses.replace(
            SHAPE, B=3, H=256, E=16, E_held=8, I_expert=96, L=2, experts_per_token=3, options=()
        )
        for cores in (1, 2):
            result = launch.check(shape, 2, cores, cores=cores, record=True)
            self.assertIn(("narrow_experts", "expand"), _functions(result))

    @parameterized.parameters(
        ({"options": ("bias_gates",)},),
        ({"quantized": (("float8_e4m3", "float8_e4m3", None),)},),
        ({"quantized": ((None, "float8_e4m3", None),)},),
        ({"I_expert": 128},),
        ({"I_expert": 80},),
    )
    def test_others_run_alone(self, changes: dict[str, Any]) -> None:
        shape = dataclasses.replace(
            SHAPE, H=256, E=8, E_held=8, I_expert=96, L=1, experts_per_token=3, options=()
        )
        result = launch.check(dataclasses.replace(shape, **changes), 1, 0, cores=2, record=True)
        self.assertNotIn(("narrow_experts", "expand"), _functions(result))


class LastBiasTest(parameterized.TestCase):
    """Biases of W_down that are added in PSUM."""

    @parameterized.parameters(
        # Ranks that share every expert: the bias counts once.
        (2, 2, 2, 2, 4),
        # A pass for one of two cores; for both.
        (1, 2, 1, 1, 4),
        (1, 2, 1, 2, 4),
        # Experts beyond 128 are listed from another tile.
        (1, 1, 4, 4, 160),
    )
    def test_counts_once(self, ranks: int, cores: int, T: int, chosen: int, E: int) -> None:
        shape = dataclasses.replace(
            SHAPE, B=T, H=384, E=E, E_held=E, I_expert=16, L=1, experts_per_token=chosen,
            options=("bias_downs",), routing="topk_softmax",
        )  # fmt: skip
        result = launch.check(shape, ranks, 0, cores=cores, record=True)
        self.assertIn(("expert_sum", "_add_biases"), _functions(result))


class SumInSbufTest(parameterized.TestCase):
    """Of more features and tokens than a sum in PSUM may have."""

    @parameterized.parameters(
        ({"B": 16, "S": 8, "H": 1152}, 1, 2, False),
        # Ranks that share every expert, or hold some; biases of W_down in each.
        ({"B": 43, "S": 4, "H": 768, "options": ("bias_downs", "bias_ups")}, 2, 2, False),
        ({"B": 70, "S": 2, "H": 896, "E_held": 4, "options": ("bias_downs",)}, 2, 1, False),
        ({"B": 70, "S": 2, "H": 896, "L": 2}, 1, 2, True),
        # Fewer experts than cores: the first adds all biases.
        ({"B": 70, "S": 2, "H": 896, "E": 1, "E_held": 1, "options": ("bias_downs",)}, 1, 2, False),
    )
    @pytest.mark.extended_except("0", "1", "4")
    def test_against_the_oracle(
        self, changes: dict[str, Any], ranks: int, cores: int, stacked: bool
    ) -> None:
        fields = {"S": 1, "E": 8, "E_held": 8, "I_expert": 96, "L": 1, "options": (), **changes}
        shape = dataclasses.replace(
            SHAPE, **fields, experts_per_token=min(2, fields["E"]), routing="topk_softmax"
        )
        result = launch.check(shape, ranks, 0, cores=cores, stacked=stacked, record=True)
        functions = _functions(result)
        self.assertIn(("experts", "add_in_sbuf"), functions)
        if "bias_downs" in shape.options:
            self.assertIn(("expert_sum", "_add_rows"), functions)


class WideRowsTest(parameterized.TestCase):
    """Rows of W_down that are longer than a buffer, of a sum that fits in PSUM."""

    @parameterized.parameters(
        ({"H": 4224, "options": ("bias_downs",)}, 2),
        ({"H": 8320, "dtype": "bfloat16"}, 1),
        # The second load begins within a bank.
        ({"H": 4224, "B": 15}, 2),
    )
    def test_against_the_oracle(self, changes: dict[str, Any], cores: int) -> None:
        fields = {"E": 2, "E_held": 2, "I_expert": 96, "L": 1, "options": (), **changes}
        shape = dataclasses.replace(SHAPE, **fields)
        result = launch.check(shape, 1, 0, cores=cores, record=True)
        self.assertIn(("linear", "add_product"), _functions(result))


class SingleTokenTest(parameterized.TestCase):
    @parameterized.product(routing=("softmax_topk", "topk_softmax"), normalize=(False, True))
    @pytest.mark.extended_except("0", "3")
    def test_of_every_layer(self, routing: str, normalize: bool) -> None:
        """Layers that are a loop on the device count experts over all of them."""
        shape = dataclasses.replace(
            SHAPE, H=256, E=12, E_held=12, I_expert=32, L=3, experts_per_token=3,
            routing=routing, normalize_expert_weights=normalize,
            options=("bias_gates", "bias_downs"),
        )  # fmt: skip
        for stacked in (False, True):
            result = launch.check(shape, 1, 0, cores=2, stacked=stacked, record=True)
            self.assertIn(("single_token", "next_batch"), _functions(result))

    @parameterized.parameters(
        {"routing": "sigmoid_topk"}, {"experts_per_token": 9}, {"B": 2}, {"E_held": 6}
    )
    @pytest.mark.extended_except("0", "2")
    def test_others_are_listed(self, **changes: Any) -> None:
        shape = dataclasses.replace(
            SHAPE, H=128, E=12, E_held=12, I_expert=16, L=1, experts_per_token=3,
            routing="softmax_topk", options=(),
        )  # fmt: skip
        shape = dataclasses.replace(shape, **changes)
        result = launch.check(shape, shape.E // shape.E_held, 0, cores=1, record=True)
        self.assertNotIn(("single_token", "next_batch"), _functions(result))


class TrafficTest(parameterized.TestCase):
    @parameterized.parameters((1, False, 1), (2, False, 3), (2, True, 1), (2, True, 3))
    @pytest.mark.extended_except("1", "2")
    def test_only_chosen_experts_are_read(self, cores: int, stacked: bool, T: int) -> None:
        """Bytes read of the experts' weights are those of the distinct experts of each layer."""
        shape = dataclasses.replace(
            SHAPE, B=T, H=256, E=32, E_held=32, I_expert=64, L=2, experts_per_token=2
        )
        result = launch.check(shape, 1, 0, cores=cores, stacked=stacked, record=True)
        names = ("W_gates", "W_ups", "W_downs")
        read = dict.fromkeys(names, 0)
        for instruction in itertools.chain.from_iterable(result.record.streams.values()):
            for access in moved(instruction)[0]:
                name = access.name.split("[")[0]
                if name in names:
                    read[name] += access.nbytes
        expert = shape.H * shape.I_expert * 4
        # Several tokens may share experts; each that is read is read once.
        for name in names:
            experts, left = divmod(read[name], expert)
            self.assertEqual(left, 0)
            self.assertEqual(read[name], read["W_gates"])
            if T == 1:
                self.assertEqual(experts, shape.L * shape.experts_per_token)
            else:
                self.assertLessEqual(experts, shape.L * T * shape.experts_per_token)
                self.assertGreater(experts, shape.L)

    @parameterized.parameters(
        (1024, False, False, True),
        (2048, False, False, True),
        (2176, False, False, False),
        (1024, True, False, True),
        (2176, True, False, False),
        (1024, True, True, False),
    )
    def test_sums_in_psum_or_beside_it(
        self, H: int, biased: bool, scaled: bool, in_psum: bool
    ) -> None:
        """64 tokens of 8, 16 and 17 chunks of features: one bank, two, and no room for three."""
        shape = dataclasses.replace(
            SHAPE, B=64, H=H, E=4, E_held=4, I_expert=16, L=1, experts_per_token=1,
            options=("bias_downs",) if biased else (),
            quantized=((None, None, "float8_e4m3"),) if scaled else SHAPE.quantized,
        )  # fmt: skip
        result = launch.check(shape, 1, 0, cores=2, record=True)
        self.assertEqual(("linear", "add_product") in _functions(result), in_psum)

    def test_experts_that_other_ranks_hold(self) -> None:
        """Passes without an expert multiply what is there: of float8 it is huge as bfloat16."""
        shape = dataclasses.replace(
            SHAPE, H=256, E=16, E_held=8, I_expert=128, L=2, experts_per_token=4, options=(),
            dtype="bfloat16", quantized=(("float8_e4m3", None, None),) * 2,
        )  # fmt: skip
        for seed in range(2):
            launch.check(shape, 2, seed, cores=1 + seed)

    def test_absent_blocks_after_a_float32_router(self) -> None:
        """What half of a float32 leaves may be a NaN as bfloat16, and is multiplied by zero.

        With one expert per token six loads follow each other: values come where the router was.
        """
        shape = cases.Shape(
            B=1, S=1, q=2, k=1, d=64, H=1024, L=2, S_ctx=512, S_max=512, block_len=16,
            dtype="bfloat16", context="lengths", E=64, E_held=64, I_expert=128,
            experts_per_token=1,
        )  # fmt: skip
        (row,) = parallel_cases.random_ranks(shape, 1, 1, 0)
        (arguments,) = row
        arguments["context_lengths"] = np.array([40], np.int32)
        tables = np.array(arguments["block_tables"])
        tables[:, 3:] = -1
        arguments["block_tables"] = tables
        rng = np.random.default_rng(0)
        arguments["W_routers"] = [
            np.asarray(router, np.float32) * rng.uniform(0.9, 1.1, router.shape).astype(np.float32)
            for router in arguments["W_routers"]
        ]
        hidden, K, V, written = cases.expected(shape, row, row)
        (output,), _ = launch.run(shape, row, cores=1)
        cases.check(output, shape, arguments, hidden, K[0], V[0], written)


if __name__ == "__main__":
    absltest.main()
