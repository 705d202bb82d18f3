"""What ranks that share out a context exchange: in the kernel, in the reference, and in float64."""

from __future__ import annotations

import types
from typing import Any

import jax.numpy as jnp
import nki.isa as nisa
import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.kernels.cache_scales import ScoreScale
from jax_tkg.kernels.context_ranks import StateExchange, context_ranks
from jax_tkg.kernels.divisions import head_chunks
from jax_tkg.kernels.limits import PARTITIONS
from jax_tkg.kernels.softmax import MASKED, SoftmaxState
from jax_tkg.reference.softmax import merged_softmax
from tests.stages import drawing
from tests.stages.kernel_stages import KernelStages
from tests.stages.small_kernels import load, normalized, same, store, turned_back, turned_heads


class ContextRanksTest(parameterized.TestCase):
    @parameterized.parameters((1, 4, False, 64), (2, 2, True, 64), (2, 3, False, 256))
    def test_states_are_merged(self, cores: int, count: int, on_chip: bool, d: int) -> None:
        """A tenth of the queries attends nothing on a rank and core, some nothing at all."""
        B, S, q = 3, 2, 2
        rng = np.random.default_rng(count)
        # Of each rank and core, by sequence, rank that has the heads, head and token.
        shape = (count, cores, B, count, q * S)
        blind = (rng.random(shape) < 0.1) | (rng.random(shape[2:]) < 0.1)
        peaks = np.where(blind, MASKED, rng.normal(0, 20, shape)).astype(np.float32)
        totals = rng.uniform(1, 9, shape).astype(np.float32)
        weighted = drawing.uniform(rng, *shape, d)
        chunks = head_chunks(d)
        rows = d // chunks
        columns = B * count * q * S
        packed = np.zeros((count, cores, PARTITIONS, 2 + chunks, columns), np.float32)
        packed[:, :, :, 0] = peaks.reshape(count, cores, 1, columns)
        packed[:, :, :, 1] = totals.reshape(count, cores, 1, columns)
        by_chunk = weighted.reshape(count, cores, columns, chunks, rows)
        packed[:, :, :rows, 2:] = by_chunk.transpose(0, 1, 4, 3, 2)
        scale = 0.125

        def body(context: Any, states: Any) -> Any:
            state = SoftmaxState(rows, chunks, columns)
            nisa.tensor_copy(dst=state.packed, src=load(states[context.core.index]))
            ranks = context_ranks(count, (tuple(range(count)),), on_chip, context.sizes)
            group = types.SimpleNamespace(count=B)
            exchange = StateExchange(state, group, ranks, context.core, both=cores > 1)
            own = exchange.merged(ScoreScale(scale))
            return store(normalized(own), context)

        given = [{"states": packed[rank]} for rank in range(count)]
        outputs = KernelStages(cores).run(body, given, B=B, S=S, q=q, d=d)
        for rank, out in enumerate(outputs):
            got = turned_back(same(out)).reshape(B, q * S, d)
            peak, total, values = (
                drawing.wide(array[:, :, :, rank]).reshape(-1, *array.shape[2:3], *array.shape[4:])
                for array in (peaks, totals, weighted)
            )
            factors = np.where(peak == MASKED, 0.0, np.exp(scale * (peak - peak.max(axis=0))))
            sums = (factors * total).sum(axis=0)[..., None]
            want = (factors[..., None] * values).sum(axis=0) / np.where(sums, sums, 1.0)
            drawing.assert_close(got, want, "float32")
            largest = np.where(peak == MASKED, -np.inf, scale * peak)[..., None]
            parts = np.concatenate([largest, total[..., None], values], axis=-1)
            drawing.assert_close(merged_softmax(jnp.asarray(parts, jnp.float32)), want, "float32")

    @parameterized.parameters((1, False), (2, False), (2, True))
    def test_queries_of_all_ranks(self, cores: int, on_chip: bool) -> None:
        B, S, q, d, count = 2, 2, 3, 256, 2
        rng = np.random.default_rng(0)
        heads = drawing.uniform(rng, count, B, S, q + 2, d)

        def body(context: Any, heads: Any) -> Any:
            ranks = context_ranks(count, (tuple(range(count)),), on_chip, context.sizes)
            own = load(heads).reshape_dim(1, (q + 2, 2))
            return store(ranks.gather_queries(own, context.core), context)

        given = [{"heads": turned_heads(of_rank)} for of_rank in heads]
        outputs = KernelStages(cores).run(body, given, B=B, S=S, q=q, d=d, dtype="float32")
        queries = np.concatenate(list(heads[..., :q, :]), axis=2)
        for of_rank, out in zip(heads, outputs, strict=True):
            whole = np.concatenate([queries, of_rank[:, :, q:]], axis=2)
            got = same(out)
            want = turned_heads(whole)
            np.testing.assert_array_equal(got.reshape(want.shape), want)


if __name__ == "__main__":
    absltest.main()
