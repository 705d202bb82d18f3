"""Collectives between ranks that hold different data, and what goes wrong between them."""

import time

import ml_dtypes
import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import collectives as nccl
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness

_G = np.random.default_rng(0)


def _ranks(count, shape, dtype=np.float32):
    return [_G.normal(size=shape).astype(dtype) for _ in range(count)]


def _run(kernel, arrays, lnc=1, target="trn2", **options):
    return simulator.run(
        kernel,
        [{"x": array} for array in arrays],
        lnc=lnc,
        target=target,
        options=simulator.Options(**options),
    )


def _on_hbm(call, shape_of):
    """A kernel around a collective on HBM; shape_of gives the output's shape."""

    def kernel(x):
        out = nl.ndarray(shape_of(x.shape), dtype=x.dtype, buffer=nl.shared_hbm, name="out")
        call([x], [out])
        return out

    return kernel


def _group(*groups):
    return nccl.ReplicaGroup([list(group) for group in groups])


class HbmTest(parameterized.TestCase):
    @parameterized.product(
        op=[(nl.add, np.sum), (nl.maximum, np.max), (nl.minimum, np.min)], lnc=[1, 2]
    )
    def test_all_reduce(self, op, lnc):
        arrays = _ranks(4, (8, 6))
        kernel = _on_hbm(
            lambda s, d: nccl.all_reduce(s, d, _group(range(4)), op[0]), lambda shape: shape
        )
        result = _run(kernel, arrays, lnc)
        expected = op[1](np.stack(arrays).astype(np.float64), axis=0)
        for output in result.outputs:
            np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)

    def test_sums_are_made_in_float32(self):
        one, small = np.float32(1), np.float32(2**-9)
        arrays = [np.full((1, 1), v, ml_dtypes.bfloat16) for v in (one, small, small, small, small)]
        kernel = _on_hbm(
            lambda s, d: nccl.all_reduce(s, d, _group(range(5)), nl.add), lambda shape: shape
        )
        # 1 + 4 * 2^-9 = 1 + 2^-7; adding one at a time in bfloat16 would stay at 1.
        self.assertEqual(float(_run(kernel, arrays).outputs[3][0, 0]), 1 + 2.0**-7)

    def test_the_order_of_threads_does_not_matter(self):
        arrays = _ranks(4, (16, 64))
        kernel = _on_hbm(
            lambda s, d: nccl.all_reduce(s, d, _group(range(4)), nl.add), lambda shape: shape
        )
        first = _run(kernel, arrays, 2).outputs[0]
        for _ in range(10):
            for output in _run(kernel, arrays, 2).outputs:
                np.testing.assert_array_equal(output, first)

    @parameterized.parameters(1, 2)
    def test_several_groups(self, lnc):
        arrays = _ranks(4, (2, 3))
        kernel = _on_hbm(
            lambda s, d: nccl.all_reduce(s, d, _group([0, 2], [3, 1]), nl.add),
            lambda shape: shape,
        )
        result = _run(kernel, arrays, lnc)
        np.testing.assert_allclose(result.outputs[2], arrays[0] + arrays[2], rtol=1e-6)
        np.testing.assert_allclose(result.outputs[1], arrays[3] + arrays[1], rtol=1e-6)

    @parameterized.parameters(1, 2)
    def test_all_gather_in_the_order_of_the_group(self, lnc):
        arrays = _ranks(3, (2, 3))
        kernel = _on_hbm(
            lambda s, d: nccl.all_gather(s, d, _group([2, 0, 1]), 0),
            lambda shape: (3 * shape[0], shape[1]),
        )
        expected = np.concatenate([arrays[2], arrays[0], arrays[1]])
        for output in _run(kernel, arrays, lnc).outputs:
            np.testing.assert_array_equal(output, expected)

    @parameterized.parameters(1, 2)
    def test_reduce_scatter(self, lnc):
        arrays = _ranks(4, (8, 3))
        kernel = _on_hbm(
            lambda s, d: nccl.reduce_scatter(s, d, _group(range(4)), 0, nl.add),
            lambda shape: (shape[0] // 4, shape[1]),
        )
        total = np.stack(arrays).astype(np.float64).sum(axis=0)
        for rank, output in enumerate(_run(kernel, arrays, lnc).outputs):
            np.testing.assert_allclose(output, total[2 * rank : 2 * rank + 2], rtol=1e-5, atol=1e-6)

    def test_all_to_all(self):
        arrays = _ranks(4, (8, 3))
        kernel = _on_hbm(
            lambda s, d: nccl.all_to_all(s, d, _group(range(4)), 0), lambda shape: shape
        )
        for rank, output in enumerate(_run(kernel, arrays).outputs):
            expected = np.concatenate([a[2 * rank : 2 * rank + 2] for a in arrays])
            np.testing.assert_array_equal(output, expected)

    def test_collective_permute(self):
        arrays = _ranks(3, (2, 2))

        def kernel(x):
            out = nl.full(x.shape, 0, x.dtype, buffer=nl.shared_hbm)
            nccl.collective_permute([x], [out], [(0, 2), (2, 0)])
            return out

        outputs = _run(kernel, arrays).outputs
        np.testing.assert_array_equal(outputs[2], arrays[0])
        np.testing.assert_array_equal(outputs[0], arrays[2])
        np.testing.assert_array_equal(outputs[1], 0)

    @parameterized.parameters(1, 2)
    def test_collective_permute_in_place(self, lnc):
        """Every rank sends what it held before, also if what it receives is written over it."""
        arrays = _ranks(4, (2, 2))

        def kernel(x):
            held = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm, name="held")
            nisa.dma_copy(held, x)
            nccl.collective_permute([held], [held], [(0, 1), (1, 2), (2, 3), (3, 0)])
            return held

        for rank, output in enumerate(_run(kernel, arrays, lnc).outputs):
            np.testing.assert_array_equal(output, arrays[rank - 1])

    def test_a_ring_names_the_rank_whose_data_arrived(self):
        # The documented pattern: in every step the data of the predecessor comes in.
        ranks = 4
        arrays = [np.full((1, 2), r, np.float32) for r in range(ranks)]

        def kernel(x):
            group = _group(range(ranks))
            seen = nl.ndarray((ranks, 2), dtype=nl.int32, buffer=nl.shared_hbm)
            current = x
            for i in range(ranks):
                owner = nccl.collective_permute_implicit_current_processing_rank_id(i, group)
                row = nl.ndarray((1, 2), dtype=nl.int32)
                nisa.tensor_copy(row, nl.load(current))
                nisa.register_store(row[:, 1:2], owner)
                nisa.dma_copy(seen[i : i + 1], row)
                received = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.hbm)
                nccl.collective_permute_implicit([[current]], [[received]], group)
                current = received
            return seen

        for rank, seen in enumerate(_run(kernel, arrays).outputs):
            owners = [(rank - i) % ranks for i in range(ranks)]
            np.testing.assert_array_equal(seen, np.stack([owners, owners], axis=1))

    def test_a_ring_that_reduces(self):
        arrays = _ranks(3, (2, 2))

        def kernel(x):
            out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
            nccl.collective_permute_implicit_reduce([[x]], [[x]], [[out]], _group(range(3)), nl.add)
            return out

        for rank, output in enumerate(_run(kernel, arrays).outputs):
            np.testing.assert_allclose(output, 2 * arrays[(rank - 1) % 3], rtol=1e-6)

    def test_rank_id(self):
        def kernel(x):
            out = nl.ndarray((1, 1), dtype=nl.int32, buffer=nl.shared_hbm)
            nisa.register_store(out, nccl.rank_id())
            return out

        outputs = _run(kernel, _ranks(3, (1, 1))).outputs
        self.assertEqual([int(o[0, 0]) for o in outputs], [0, 1, 2])


class SbufTest(parameterized.TestCase):
    @parameterized.parameters(1, 2)
    def test_all_reduce_meets_the_same_core_of_other_ranks(self, lnc):
        arrays = _ranks(2, (128, 4))

        def kernel(x):
            me = nl.program_id(0)
            width = 4 // nl.num_programs()
            columns = nl.ds(me * width, width)
            mine = nl.load(x[:, columns])
            total = nl.ndarray(mine.shape, dtype=mine.dtype)
            nccl.all_reduce([mine], [total], _group(range(2)), nl.add)
            out = nl.ndarray((128, 4), dtype=x.dtype, buffer=nl.shared_hbm, name="out")
            nisa.dma_copy(out[:, columns], total)
            return out

        for output in _run(kernel, arrays, lnc).outputs:
            np.testing.assert_allclose(output, arrays[0] + arrays[1], rtol=1e-6)

    @parameterized.parameters(0, 1)
    def test_all_gather_along_either_dimension(self, dim):
        arrays = _ranks(2, (32, 4))
        shape = (64, 4) if dim == 0 else (32, 8)

        def kernel(x):
            gathered = nl.ndarray(shape, dtype=x.dtype)
            nccl.all_gather([nl.load(x)], [gathered], _group(range(2)), dim)
            out = nl.ndarray(shape, dtype=x.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, gathered)
            return out

        for output in _run(kernel, arrays).outputs:
            np.testing.assert_array_equal(output, np.concatenate(arrays, axis=dim))


def _reduce_in(*groups, op=nl.add):
    return _on_hbm(lambda s, d: nccl.all_reduce(s, d, _group(*groups), op), lambda shape: shape)


class FaultTest(parameterized.TestCase):
    def test_a_rank_that_never_comes(self):
        def kernel(x):
            if int(nccl.rank_id()) != 1:
                return _reduce_in(range(3))(x)

        with self.assertRaisesRegex(
            simulator.MissingPeerError,
            r"all_reduce of ranks \[0, 1, 2\] at .*test_collectives.py:\d+: rank 0 core 0 waits "
            "for rank 1 core 0, which has ended without coming",
        ):
            harness.must_end(_run, kernel, _ranks(3, (1, 1)))

    def test_a_rank_outside_the_run(self):
        with self.assertRaisesRegex(
            simulator.MissingPeerError, "rank 2 core 0.*not part of this run"
        ):
            harness.must_end(_run, _reduce_in(range(3)), _ranks(2, (1, 1)))

    def test_a_rank_outside_every_group(self):
        with self.assertRaisesRegex(
            simulator.NkiValidationError, r"rank 2 is in none of the groups \[\[0, 1\]\]"
        ):
            harness.must_end(_run, _reduce_in([0, 1]), _ranks(3, (1, 1)))

    def test_mismatched_groups(self):
        def kernel(x):
            return _reduce_in([0, 1, 2] if int(nccl.rank_id()) < 2 else [1, 2])(x)

        with self.assertRaisesRegex(
            simulator.MissingPeerError,
            r"all_reduce of ranks \[0, 1, 2\].*rank 2 core 0, which waits at all_reduce of ranks "
            r"\[1, 2\]",
        ):
            harness.must_end(_run, kernel, _ranks(3, (1, 1)))

    def test_overlapping_groups(self):
        with self.assertRaisesRegex(ValueError, "rank 1 occurs twice"):
            _group([0, 1], [1, 2])

    def test_mismatched_shapes(self):
        with self.assertRaisesRegex(
            simulator.PeerMismatchError,
            r"all_reduce: srcs\[0\] of rank 0 is \[2, 2\] float32 at .*py:\d+, but that of rank 1 "
            r"is \[2, 3\]",
        ):
            harness.must_end(
                _run, _reduce_in([0, 1]), [np.ones((2, 2), np.float32), np.ones((2, 3), np.float32)]
            )

    def test_mismatched_dtypes(self):
        arrays = [np.ones((2, 2), np.float32), np.ones((2, 2), np.float16)]
        with self.assertRaisesRegex(simulator.PeerMismatchError, "float32 .* float16"):
            harness.must_end(_run, _reduce_in([0, 1]), arrays)

    def test_mismatched_operations(self):
        def kernel(x):
            out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
            if int(nccl.rank_id()):
                nccl.all_to_all([x], [out], _group([0, 1]), 0)
            else:
                nccl.all_reduce([x], [out], _group([0, 1]), nl.add)

        with self.assertRaisesRegex(
            simulator.PeerMismatchError, "rank 0 calls all_reduce at .* rank 1 calls all_to_all"
        ):
            harness.must_end(_run, kernel, _ranks(2, (2, 2)))

    def test_an_unbarriered_write_races_with_the_collective(self):
        # Each core writes half of the source, and nothing says that both halves are there when
        # one core still writes after the call has begun on the other: the call itself orders them.
        def kernel(x):
            part = nl.ndarray((2, 2), dtype=x.dtype, buffer=nl.shared_hbm, name="part")
            out = nl.ndarray((2, 2), dtype=x.dtype, buffer=nl.shared_hbm, name="out")
            me = nl.program_id(0)
            nccl.all_reduce([x], [out], _group([0, 1]), nl.add)
            nisa.dma_copy(part[me : me + 1], nl.load(out[me : me + 1]))
            return part

        result = _run(kernel, _ranks(2, (2, 2)), lnc=2, races="report")
        self.assertEqual(result.findings, [])

    @parameterized.parameters(0, 1)
    def test_what_either_core_writes_before_is_read(self, slow):
        """Whichever thread arrives first: the call orders the cores of a rank."""

        def kernel(x):
            out = nl.ndarray((2, 2), dtype=x.dtype, buffer=nl.shared_hbm)
            half = nl.ndarray((1, 2), dtype=x.dtype, buffer=nl.sbuf)
            me = nl.program_id(0)
            if me == slow:
                time.sleep(0.1)
            nisa.memset(half, 10.0 + me)
            nisa.dma_copy(x[me : me + 1], half)
            nccl.all_reduce([x], [out], _group([0, 1]), nl.add)
            return out

        result = _run(kernel, _ranks(2, (2, 2)), lnc=2, races="report")
        self.assertEqual(result.findings, [])
        for output in result.outputs:
            np.testing.assert_array_equal(output, [[20, 20], [22, 22]])

    @parameterized.named_parameters(
        ("tensor", lambda x, y, me: (x, y if me else x), r"dsts\[0\] is .* on the second at"),
        ("view", lambda x, y, me: (x[me : me + 1], y[0:1]), r"srcs\[0\] is .* on the first core"),
    )
    def test_cores_name_the_same_tensors(self, chosen, message):
        def kernel(x):
            y = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
            src, dst = chosen(x, y, nl.program_id(0))
            nccl.all_reduce([src], [dst], _group([0, 1]), nl.add)
            return y

        with self.assertRaisesRegex(simulator.PeerMismatchError, message):
            _run(kernel, _ranks(2, (2, 2)), lnc=2)

    def test_cores_name_as_many_tensors(self):
        def kernel(x):
            y = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
            count = 1 + nl.program_id(0)
            nccl.all_reduce([x] * count, [y] * count, _group([0, 1]), nl.add)
            return y

        with self.assertRaisesRegex(simulator.PeerMismatchError, r"only one core names srcs\[1\]"):
            _run(kernel, _ranks(2, (2, 2)), lnc=2)


def _private(x):
    return nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.private_hbm)


class RuleTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (
            "mixed_memories",
            lambda x: nccl.all_reduce([nl.load(x)], [x], _group([0]), nl.add),
            "all in SBUF, got both",
        ),
        (
            "several_in_sbuf",
            lambda x: nccl.all_reduce([nl.load(x)] * 2, [nl.load(x)] * 2, _group([0]), nl.add),
            "several tensors at once need HBM; SBUF takes one, got 2",
        ),
        (
            "private_and_shared",
            lambda x: nccl.all_reduce([x, _private(x)], [x, x], _group([0]), nl.add),
            "srcs must be all in private HBM or all in shared HBM, got both",
        ),
        (
            "gather_into_private_and_shared",
            lambda x: nccl.all_gather([x, x], [_private(x), x], _group([0]), 0),
            "dsts must be all in private HBM or all in shared HBM, got both",
        ),
        (
            "operator",
            lambda x: nccl.all_reduce([x], [x], _group([0]), nl.multiply),
            "op must be nl.add, nl.minimum or nl.maximum, got multiply",
        ),
        (
            "lengths",
            lambda x: nccl.all_reduce([x], [], _group([0]), nl.add),
            "lists of equal length, got 1 and 0",
        ),
        (
            "dtypes",
            lambda x: nccl.all_reduce([x], [harness.hbm(4, 4, dtype="int32")], _group([0]), nl.add),
            r"dsts\[0\] must have the dtype of srcs\[0\], float32, got int32",
        ),
        (
            "elements",
            lambda x: nccl.all_reduce([x], [harness.hbm(4, 5)], _group([0]), nl.add),
            r"dsts\[0\] must have 16 elements",
        ),
        (
            "gather_elements",
            lambda x: nccl.all_gather([x], [harness.hbm(4, 5)], _group([0]), 0),
            r"dsts\[0\] must have 16 elements",
        ),
        (
            "gather_dim_in_hbm",
            lambda x: nccl.all_gather([x], [harness.hbm(4, 4)], _group([0]), 1),
            r"collective_dim must be one of \(0,\), got 1",
        ),
        (
            "scatter_divides",
            lambda x: nccl.reduce_scatter([x], [harness.hbm(1, 4)], _group([0, 1, 2]), 0, nl.add),
            "must divide by the 3 ranks",
        ),
        (
            "all_to_all_not_in_sbuf",
            lambda x: nccl.all_to_all([nl.load(x)], [nl.load(x)], _group([0]), 0),
            r"srcs\[0\] must be in HBM",
        ),
        (
            "not_in_psum",
            lambda x: nccl.all_reduce(
                [harness.psum(4, 4)], [harness.psum(4, 4)], _group([0]), nl.add
            ),
            r"srcs\[0\] must be in HBM or SBUF",
        ),
        (
            "permute_one_tensor",
            lambda x: nccl.collective_permute([x, x], [x, x], [(0, 0)]),
            "exactly one tensor, got 2",
        ),
        (
            "permute_targets",
            lambda x: nccl.collective_permute([x], [x], [(0, 1), (2, 1)]),
            "a rank occurs twice as target",
        ),
        (
            "channels",
            lambda x: nccl.collective_permute_implicit([[x]], [[x]], _group([0]), [1]),
            "consecutive integers from 0",
        ),
        (
            "priority",
            lambda x: nccl.all_reduce([x], [x], _group([0]), nl.add, priority=1),
            "priority needs NeuronCore-v4",
        ),
    )
    def test_limit(self, body, message):
        with self.assertRaisesRegex(simulator.NkiValidationError, message):
            _run(lambda x: body(x) and None, [np.ones((4, 4), np.float32)])


def _table(rank, ranks, rows=3):
    """Rank r sends r + i + 1 elements, from element 2 i on, to rank i."""
    table = np.zeros((rows, ranks), np.uint32)
    table[0] = rank + np.arange(ranks) + 1
    table[1] = 2 * np.arange(ranks)
    return table


class VariableTest(parameterized.TestCase):
    @parameterized.product(lnc=[1, 2], known=[False, True])
    def test_all_to_all_v(self, lnc, known):
        ranks = 3
        sources = _ranks(ranks, (16,))

        def kernel(x, table):
            out = nl.full((1, 24), -1, x.dtype, buffer=nl.shared_hbm, name="out")
            if lnc == 2:
                nisa.core_barrier(out, (0, 1))
            nccl.all_to_all_v([x], [out], _group(range(ranks)), table, recv_counts_known=known)
            return out

        arguments = [{"x": x, "table": _table(r, ranks)} for r, x in enumerate(sources)]
        result = simulator.run(kernel, arguments, lnc=lnc)
        for rank in range(ranks):
            expected = np.full(24, -1, np.float32)
            for sender in range(ranks):
                count = sender + rank + 1
                chunk = sources[sender][2 * rank : 2 * rank + count]
                expected[8 * sender : 8 * sender + count] = chunk
            np.testing.assert_array_equal(result.outputs[rank][0], expected)
            if known:
                self.assertEqual(result.mutated[rank], {})
            else:
                counts = result.mutated[rank]["table"][2]
                np.testing.assert_array_equal(counts, np.arange(ranks) + rank + 1)

    def test_receivers_may_choose_the_places(self):
        sources = _ranks(2, (8,))

        def kernel(x, table):
            out = nl.full((1, 8), 0, x.dtype, buffer=nl.shared_hbm)
            nccl.all_to_all_v([x], [out], _group(range(2)), table, has_rdispls=True)
            return out

        arguments = []
        for rank, x in enumerate(sources):
            table = _table(rank, 2, rows=4)
            table[3] = [4, 0]
            arguments.append({"x": x, "table": table})
        result = simulator.run(kernel, arguments)
        expected = np.concatenate([sources[1][2:5], [0], sources[0][2:4], [0, 0]])
        np.testing.assert_array_equal(result.outputs[1][0], expected)

    def test_all_gather_v(self):
        sources = _ranks(4, (16,))

        def kernel(x, table):
            out = nl.full((1, 32), 0, x.dtype, buffer=nl.shared_hbm, name="out")
            nisa.core_barrier(out, (0, 1))
            nccl.all_gather_v([x], [out], _group(range(4)), table)
            return out

        arguments = []
        for rank, x in enumerate(sources):
            table = np.zeros((3, 4), np.uint32)
            table[:2, 0] = rank + 1, 3
            arguments.append({"x": x, "table": table})
        result = simulator.run(kernel, arguments, lnc=2)
        for rank in range(4):
            got = result.outputs[rank][0].reshape(4, 8)
            for sender in range(4):
                chunk = sources[sender][3 : 3 + sender + 1]
                np.testing.assert_array_equal(got[sender, : sender + 1], chunk)
                self.assertFalse(got[sender, sender + 1 :].any())

    def test_a_chunk_that_does_not_fit(self):
        def kernel(x, table):
            out = nl.full((1, 2), 0, x.dtype, buffer=nl.shared_hbm)
            nccl.all_to_all_v([x], [out], _group(range(2)), table)

        arguments = [{"x": np.ones(8, np.float32), "table": _table(r, 2)} for r in range(2)]
        with self.assertRaisesRegex(
            simulator.PeerMismatchError, "rank 1 sends elements 0..2 .* to 1..3 of the 2 of rank 0"
        ):
            simulator.run(kernel, arguments)

    @parameterized.named_parameters(
        ("lnc", {"lnc": 1}, "needs LNC 2"),
        ("ranks", {"lnc": 2}, r"exactly 4 ranks, got \[0, 1\]"),
    )
    def test_limit_of_all_gather_v(self, options, message):
        def kernel(x, table):
            nccl.all_gather_v([x], [x], _group(range(2)), table)

        arguments = [{"x": np.ones(8, np.float32), "table": _table(r, 2)} for r in range(2)]
        with self.assertRaisesRegex(simulator.NkiValidationError, message):
            simulator.run(kernel, arguments, **options)

    def test_limit_of_the_table(self):
        def kernel(x, table):
            nccl.all_to_all_v([x], [x], _group(range(2)), table)

        arguments = [{"x": np.ones(8, np.float32), "table": _table(r, 3)} for r in range(2)]
        with self.assertRaisesRegex(
            simulator.NkiValidationError, r"metadata_tensor must have shape \(3, 2\)"
        ):
            simulator.run(kernel, arguments)
