"""The whole kernel with a head, in the simulator: against float64, over launches and ranks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.output_head import merge_candidates
from jax_tkg.profile import stages
from tests import cases
from tests.kernels import launch
from tests.test_candidates import arguments, check_candidates, exact_logits


def _check(out: Any, given: dict[str, Any], dtype: str) -> None:
    check_candidates(
        np.asarray(out.candidate_logits),
        np.asarray(out.candidate_ids),
        exact_logits(out.hidden, given),
        1e-5 if dtype == "float32" else 0.02,
    )


class KernelTest(parameterized.TestCase):
    @parameterized.parameters(
        (1, cases.Shape(B=2, S=2, L=2), 300, 3, False),
        (2, cases.Shape(B=1, S=1, H=384, L=1), 1000, 12, False),
        (2, cases.Shape(B=3, S=2, L=2, dtype="bfloat16"), 130, 1, True),
        # More tokens than a tile has rows.
        (2, cases.Shape(B=66, S=2, L=1, q=2, k=1), 300, 9, False),
        (1, cases.Shape(B=27, S=5, L=1, q=2, k=1), 300, 2, False),
    )
    @pytest.mark.extended_except("1", "2", "3")
    def test_alone(self, cores: int, shape: cases.Shape, V: int, count: int, stacked: bool) -> None:
        """With a loop on the device too; no barrier between the cores is missing."""
        given = arguments(shape, V)
        (out,), _ = launch.run(shape, [given], cores, stacked=stacked, candidates_per_token=count)
        _check(out, given, shape.dtype)
        (plain,), _ = launch.run(
            shape,
            [{**given, "W_head": None, "W_gamma_final": None}],
            cores,
            stacked=stacked,
        )
        np.testing.assert_array_equal(out.hidden, plain.hidden)

    def test_in_a_program(self) -> None:
        """Only the last of several launches has the head."""
        shape = cases.Shape(B=1, S=2, L=2)
        given = arguments(shape)
        run = functools.partial(
            jax_tkg.transformer_tkg,
            **cases.options(shape),
            candidates_per_token=3,
            layers_per_launch=1,
        )
        out = jax.jit(functools.partial(run, implementation="simulate"))(**given)
        _check(out, given, "float32")
        want = jax.jit(functools.partial(run, implementation="reference"))(**given)
        np.testing.assert_array_equal(out.candidate_ids, want.candidate_ids)
        text = jax_tkg.dry_run(functools.partial(run, implementation="nki"), **given)
        calls = [line for line in text.splitlines() if "AwsNeuronCustomNativeKernel" in line]
        results = [line.rpartition("->")[2] for line in calls]
        self.assertEqual(
            [result.count("tensor<1x2x3xf32>, tensor<1x2x3xi32>)") for result in results], [0, 1]
        )

    def test_ranks(self) -> None:
        """Of a vocabulary that they do not divide, with a column of NaN behind it."""
        shape = cases.Shape(B=1, S=1, L=1, q=4, k=2, I=256)
        whole = arguments(shape, 259)
        padding = np.full((shape.H, 1), np.nan, np.float32)
        given = {**whole, "W_head": np.concatenate([whole["W_head"], padding], axis=1)}
        mesh = jax.make_mesh((2,), ("tp",), axis_types=(jax.sharding.AxisType.Auto,))
        specs = jax_tkg.sharding.partition_specs("tp")
        named = {name: value for name, value in given.items() if value is not None}

        def step(named: dict[str, Any]) -> tuple[Any, ...]:
            out = jax_tkg.transformer_tkg(
                **named,
                **cases.options(shape),
                axis_name="tp",
                candidates_per_token=8,
                implementation="simulate",
            )
            return out.hidden, out.candidate_logits, out.candidate_ids

        parallel = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=({name: getattr(specs, name) for name in named},),
            out_specs=(specs.hidden, specs.candidates, specs.candidates),
        )
        hidden, *found = jax.jit(parallel)(named)
        merged = merge_candidates(*found, 8)
        exact = exact_logits(hidden, whole)
        check_candidates(np.asarray(merged[0]), np.asarray(merged[1]), exact, 1e-5)

    def test_what_it_adds_to_a_launch(self) -> None:
        """Each weight is read once, no collective is added, and a few numbers come back."""
        shape, V, count = cases.Shape(B=2, S=1, H=256, L=1), 1000, 12
        given = arguments(shape, V)
        _, plain = launch.run(
            shape, [{**given, "W_head": None, "W_gamma_final": None}], 2, record=True
        )
        _, result = launch.run(shape, [given], 2, record=True, candidates_per_token=count)
        columns, written = 0, {}
        for core in (0, 1):
            before, after = (r.record.streams[0, core] for r in (plain, result))
            # The layers are the same; what follows is the head's.
            opcodes = [[each.opcode for each in stream] for stream in (before, after)]
            self.assertEqual(opcodes[1][: len(before)], opcodes[0])
            added = after[len(before) :]
            self.assertEqual({stages.stage_of(each) for each in added}, {stages.HEAD})
            self.assertEqual([each.opcode for each in added if "all_" in each.opcode], [])
            for access in (access for each in added for access in each.accesses):
                if access.name == "W_head":
                    columns += access.nbytes // (shape.H * 4)
                elif access.space == "hbm" and access.is_write and access.dtype != "bool":
                    written.setdefault(core, []).append(access.nbytes)
            # 512 columns of a core are one bank, 488 are two; a search is for eight.
            pieces = (1, 2)[core]
            found = [each.opcode for each in added].count("max8")
            self.assertEqual(found, 2 * (pieces + 1))
        # Of core 1, a tile begins with 24 columns of the tile before.
        self.assertEqual(columns, V + 24)
        self.assertEqual(written[0][-2:], [2 * count * 4] * 2)

    def test_limits(self) -> None:
        shape = cases.Shape(B=1, S=1, L=1)
        given = arguments(shape, 60000)
        with self.assertRaisesRegex(
            ValueError, "candidates_per_token: expected at most 16384 candidates .* V = 60000"
        ):
            jax_tkg.dry_run(
                functools.partial(
                    jax_tkg.transformer_tkg,
                    **cases.options(shape),
                    candidates_per_token=200,
                    implementation="nki",
                ),
                **given,
            )


if __name__ == "__main__":
    absltest.main()
