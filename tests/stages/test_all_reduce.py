"""The sum over ranks, added to the residual stream, which is rounded once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from jax_tkg.call.arguments import Parameters
from jax_tkg.reference.all_reduce import all_reduce
from tests.stages import drawing
from tests.stages.kernel_stages import KernelStages

Groups = tuple[tuple[int, ...], ...]
GROUPS: dict[str, Groups] = {
    "two": ((0, 1),),
    "four": ((0, 1, 2, 3),),
    "neighbors": ((0, 1), (2, 3)),
    "strided": ((0, 2), (1, 3)),
    "any": ((0, 3), (2, 1)),
}


def _expected(
    xs: list[np.ndarray],
    partials: list[np.ndarray],
    groups: Groups,
    bias: np.ndarray | None = None,
    gamma: np.ndarray | None = None,
) -> list[np.ndarray]:
    sums = {
        rank: sum(drawing.wide(partials[r]) for r in group) for group in groups for rank in group
    }
    for rank in sums:
        if bias is not None:
            sums[rank] = sums[rank] + drawing.wide(bias)
        if gamma is not None:
            square = np.square(sums[rank]).mean(axis=-1, keepdims=True)
            sums[rank] = sums[rank] / np.sqrt(square + 1e-6) * drawing.wide(gamma)
    return [drawing.wide(x) + sums[rank] for rank, x in enumerate(xs)]


@pytest.mark.thorough
class KernelTest(parameterized.TestCase):
    @parameterized.product(
        cores=(1, 2), groups=tuple(GROUPS), on_chip=(False, True), dtype=drawing.DTYPES
    )
    @pytest.mark.extended_except(
        "1",
        "2",
        "5",
        "6",
        "9",
        "10",
        "13",
        "14",
        "17",
        "18",
        "21",
        "22",
        "25",
        "26",
        "29",
        "30",
        "33",
        "34",
        "37",
        "39",
    )
    def test_drawn(self, cores: int, groups: str, on_chip: bool, dtype: str) -> None:
        ranks = sum(map(len, GROUPS[groups]))

        @drawing.examples(f"all_reduce {groups} {dtype}", 3)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data)
            H = drawing.chunks(data)
            rng = drawing.generator(data)
            xs = [drawing.uniform(rng, B, S, H, dtype=dtype) for _ in range(ranks)]
            partials = [drawing.uniform(rng, B, S, H) for _ in range(ranks)]
            bias, gamma = (
                drawing.uniform(rng, 1, H, dtype=dtype) if data.draw(st.booleans()) else None
                for _ in range(2)
            )
            got = KernelStages(cores).add_reduced(
                xs, partials, GROUPS[groups], on_chip, bias, gamma
            )
            want = _expected(xs, partials, GROUPS[groups], bias, gamma)
            for one, other in zip(got, want, strict=True):
                drawing.assert_close(one, other, dtype)

        del run

    @parameterized.product(cores=(1, 2), dtype=drawing.DTYPES)
    def test_residual_of_one_rank(self, cores: int, dtype: str) -> None:
        """Rounded once, from the exact sum of the two f32 values."""
        rng = np.random.default_rng(0)
        x = drawing.uniform(rng, 2, 3, 640, dtype=dtype)
        partial = drawing.uniform(rng, 2, 3, 640)
        (got,) = KernelStages(cores).add_reduced([x], [partial], None, False)
        want = (x.astype(np.float32) + partial).astype(drawing.kind(dtype))
        np.testing.assert_array_equal(got, want.astype(np.float64))


class ReferenceTest(parameterized.TestCase):
    @parameterized.product(groups=tuple(GROUPS), check_vma=(True, False))
    def test_sums_the_groups(self, groups: str, check_vma: bool) -> None:
        listed = GROUPS[groups]
        ranks = sum(map(len, listed))
        rng = np.random.default_rng(0)
        partials = drawing.uniform(rng, ranks, 3, 256)
        parameters = Parameters(num_layers=1, replica_groups=listed)
        spec = PartitionSpec("ranks")
        run = jax.shard_map(
            functools.partial(all_reduce, parameters=parameters),
            mesh=jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:ranks]), ("ranks",)),
            in_specs=spec,
            out_specs=spec,
            check_vma=check_vma,
        )
        got: Any = jax.jit(run)(partials)
        zeros = [np.zeros((3, 256), np.float32)] * ranks
        want = _expected(zeros, list(partials), listed)
        drawing.assert_close(got, np.stack(want), "float32")

    def test_nothing_to_sum(self) -> None:
        partial = np.ones((2, 3), np.float32)
        for groups in (None, ((0,), (1,))):
            parameters = Parameters(num_layers=1, replica_groups=groups)
            self.assertIs(all_reduce(partial, parameters), partial)


if __name__ == "__main__":
    absltest.main()
