"""DMA: copies, gathers and scatters, transposes, sums, and the documented limits."""

import ml_dtypes
import numpy as np
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import hbm, psum, tile

_G = np.random.default_rng(0)
_DATA = _G.normal(size=(64, 12)).astype(np.float32)
_SKIP = nisa.oob_mode.skip


def _gather(data, indices):
    """The indirect gather of the documentation."""
    P, F = indices.shape[0], data.shape[1]
    output = nl.ndarray((P, F), dtype=data.dtype, buffer=nl.shared_hbm)
    idx = nl.ndarray((P, 1), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.dma_copy(dst=idx, src=indices)
    dst = nl.ndarray((P, F), dtype=data.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=dst, src=data.ap(pattern=[[F, P], [1, F]], vector_offset=idx, indirect_dim=0))
    nisa.dma_copy(dst=output, src=dst)
    return output


def _scatter(src_data, indices, output, oob_mode=nisa.oob_mode.error):
    """The indirect scatter of the documentation."""
    P, F = src_data.shape
    src = nl.ndarray((P, F), dtype=src_data.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=src, src=src_data)
    idx = nl.ndarray((P, 1), dtype=nl.uint32, buffer=nl.sbuf)
    nisa.dma_copy(dst=idx, src=indices)
    nisa.dma_copy(
        dst=output.ap(pattern=[[F, P], [1, F]], vector_offset=idx, indirect_dim=0),
        src=src,
        oob_mode=oob_mode,
    )
    return output


class CopyTest(parameterized.TestCase):
    def test_shapes_may_differ(self):
        def kernel(x):
            out = nl.ndarray((2, 3, 4), dtype=x.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, x)
            return out

        x = np.arange(24, dtype=np.float32).reshape(6, 4)
        np.testing.assert_array_equal(harness.run(kernel, x).outputs[0], x.reshape(2, 3, 4))

    @parameterized.parameters("bfloat16", "float16", "float8_e4m3", "int32")
    def test_converts_through_float32(self, dtype):
        def kernel(x):
            out = nl.ndarray(x.shape, dtype=dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, nl.load(x, dtype=dtype))
            return out

        x = (_DATA * 10).astype(np.float32)
        result = harness.run(kernel, x).outputs[0]
        expected = np.rint(x) if dtype == "int32" else x
        np.testing.assert_array_equal(result, expected.astype(result.dtype))

    def test_transposing_view(self):
        def kernel(x):
            out = nl.ndarray((12, 64), dtype=x.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, x.permute((1, 0)))
            return out

        np.testing.assert_array_equal(harness.run(kernel, _DATA).outputs[0], _DATA.T)


class IndirectTest(parameterized.TestCase):
    @given(st.lists(st.integers(0, 63), min_size=1, max_size=40))
    @settings(max_examples=25, deadline=None)
    def test_gather(self, rows):
        indices = np.array(rows, np.uint32)[:, None]
        np.testing.assert_array_equal(harness.run(_gather, _DATA, indices).outputs[0], _DATA[rows])

    @given(st.permutations(list(range(20))))
    @settings(max_examples=25, deadline=None)
    def test_scatter(self, rows):
        source = _DATA[:8]
        indices = np.array(rows[:8], np.uint32)[:, None]
        start = np.zeros((20, 12), np.float32)
        result = harness.run(_scatter, source, indices, start)
        expected = start.copy()
        expected[rows[:8]] = source
        np.testing.assert_array_equal(result.outputs[0], expected)
        np.testing.assert_array_equal(start, 0)

    def test_scatter_skips_what_is_out_of_bounds(self):
        indices = np.array([[3], [0xFFFFFFFF], [20], [5]], np.uint32)
        start = np.zeros((20, 12), np.float32)

        def kernel(x, i, out):
            return _scatter(x, i, out, _SKIP)

        result = harness.run(kernel, _DATA[:4], indices, start).outputs[0]
        expected = start.copy()
        expected[3], expected[5] = _DATA[0], _DATA[3]
        np.testing.assert_array_equal(result, expected)

    def test_gather_skips_what_is_out_of_bounds(self):
        def kernel(data, indices):
            idx = nl.load(indices)
            dst = nl.full((3, 12), 7.0, nl.float32)
            nisa.dma_copy(dst, data.vector_select(0, idx), oob_mode=_SKIP)
            out = nl.ndarray((3, 12), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, dst)
            return out

        indices = np.array([[1], [64], [2]], np.int32)
        result = harness.run(kernel, _DATA, indices).outputs[0]
        np.testing.assert_array_equal(result, np.stack([_DATA[1], np.full(12, 7), _DATA[2]]))

    @parameterized.parameters((1, 64), (64, 1))
    def test_rows_that_are_skipped_on_chip_stay_unwritten(self, *rows):
        def kernel(data, indices):
            dst = nl.ndarray((2, 12), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst, data.vector_select(0, nl.load(indices)), oob_mode=_SKIP)
            nisa.tensor_copy(tile(1, 12), dst[0:1])

        indices = np.array(rows, np.int32)[:, None]
        found = harness.run(kernel, _DATA, indices, uninitialized="report").findings
        self.assertEqual([f.kind for f in found], ["uninitialized"] * (rows[0] == 64))

    def test_a_gather_that_skips_rows_is_one_access_to_each_side(self):
        def kernel(data, indices):
            dst = nl.ndarray((3, 12), dtype=nl.float32, buffer=nl.sbuf)
            nisa.dma_copy(dst, data.vector_select(0, nl.load(indices)), oob_mode=_SKIP)

        indices = np.array([[1], [64], [2]], np.int32)
        gather = harness.run(kernel, _DATA, indices).record.streams[(0, 0)][-1]
        _, source, target = gather.accesses
        for found in (source, target):
            np.testing.assert_array_equal(found.entries, [0, 2])
            self.assertEqual((found.shape, found.nbytes), ((3, 12), 2 * 12 * 4))
        np.testing.assert_array_equal(source.rows, [48, 96])

    @parameterized.parameters(64, 0xFFFFFFFF)
    def test_out_of_bounds_is_an_error_by_default(self, index):
        indices = np.array([[0], [index]], np.uint32)
        with self.assertRaisesRegex(
            simulator.OutOfBoundsError, rf"run-time index {index} \(entry 1\) is outside 0..63"
        ):
            harness.run(_gather, _DATA, indices)

    def test_scalar_offset_of_the_documentation(self):
        # The copy starts at offset + index * (elements right of indirect_dim in the base tensor).
        def kernel(a):
            batch_idx = nl.ndarray((1, 1), nl.int32, buffer=nl.sbuf)
            nisa.memset(batch_idx, value=3 * 128)
            result = nl.ndarray((128, 256), a.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(
                src=a.ap(
                    pattern=[[512, 128], [1, 256]],
                    offset=0,
                    scalar_offset=batch_idx,
                    indirect_dim=0,
                ),
                dst=result[...],
            )
            return result

        a = _G.normal(size=(512, 512)).astype(np.float32)
        np.testing.assert_array_equal(harness.run(kernel, a).outputs[0], a[384:, :256])

    def test_the_offset_is_read_when_the_instruction_runs(self):
        def kernel(a):
            index = nl.full((1, 1), 0, nl.int32)
            row = a.select(0, index)
            nisa.memset(index, 5)
            out = nl.ndarray((12,), a.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, row)
            return out

        np.testing.assert_array_equal(harness.run(kernel, _DATA).outputs[0], _DATA[5])

    def test_a_register_as_offset(self):
        def kernel(a):
            out = nl.ndarray((12,), a.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, a.select(0, nisa.register_alloc(9)))
            return out

        np.testing.assert_array_equal(harness.run(kernel, _DATA).outputs[0], _DATA[9])

    def test_scalar_offset_out_of_bounds_skips_the_whole_copy(self):
        def kernel(a, cache):
            index = nl.full((1, 1), -1, nl.int32)
            nisa.dma_copy(cache.select(0, index), nl.load(a[0:1, :]), oob_mode=_SKIP)
            return cache

        cache = np.ones((4, 12), np.float32)
        np.testing.assert_array_equal(harness.run(kernel, _DATA, cache).outputs[0], cache)


class TransposeTest(parameterized.TestCase):
    @parameterized.parameters(
        ((16, 96), (1, 0)), ((4, 8, 24), (2, 1, 0)), ((2, 3, 4, 24), (3, 1, 2, 0))
    )
    def test_permutations(self, shape, axes):
        x = _G.normal(size=shape).astype(ml_dtypes.bfloat16)
        expected = x.transpose(axes)

        def kernel(src):
            dst = nl.ndarray(expected.shape, dtype=src.dtype)
            nisa.dma_transpose(dst, src, axes=axes)
            out = nl.ndarray(expected.shape, dtype=src.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, dst)
            return out

        np.testing.assert_array_equal(harness.run(kernel, x).outputs[0], expected)

    def test_gather_transpose_of_the_documentation(self):
        # flat_indices = indices.T.flatten()[:src.shape[0]]; dst = src[flat_indices].T
        P, F = 128, 256
        data = _G.normal(size=(300, P)).astype(ml_dtypes.bfloat16)
        indices = _G.integers(0, 300, (128, 2)).astype(np.uint32)

        def kernel(src_hbm, idx_hbm):
            output = nl.ndarray((P, F), dtype=src_hbm.dtype, buffer=nl.shared_hbm)
            idx_sb = nl.load(idx_hbm)
            dst_sb = nl.ndarray((P, F), dtype=src_hbm.dtype, buffer=nl.sbuf)
            nisa.memset(dst=dst_sb, value=0)
            src_ap = src_hbm.ap(pattern=[[P, F], [1, P]], vector_offset=idx_sb, indirect_dim=0)
            nisa.dma_transpose(dst=dst_sb, src=src_ap, axes=(1, 0))
            nisa.dma_copy(dst=output, src=dst_sb)
            return output

        expected = data[indices.T.flatten()[:F]].T
        np.testing.assert_array_equal(harness.run(kernel, data, indices).outputs[0], expected)

    def test_gather_transpose_leaves_skipped_columns_unwritten(self):
        data = _G.normal(size=(40, 32)).astype(ml_dtypes.bfloat16)
        indices = np.arange(16, dtype=np.uint32)[:, None]
        indices[3] = 99

        def kernel(src, idx_hbm, columns):
            dst = nl.ndarray((32, 16), dtype=src.dtype, buffer=nl.sbuf)
            nisa.dma_transpose(dst, src.vector_select(0, nl.load(idx_hbm)), oob_mode=_SKIP)
            out = nl.ndarray((32, columns), dtype=src.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(out, dst[:, 0:columns])
            return out

        result = harness.run(kernel, data, indices, 3).outputs[0]
        np.testing.assert_array_equal(result, data[:3].T)
        with self.assertRaisesRegex(simulator.UninitializedReadError, "reads 32 of 128 elements"):
            harness.run(kernel, data, indices, 4)

    def test_gather_transpose_with_one_column_of_the_documentation(self):
        P, F = 128, 128
        data = _G.normal(size=(200, P)).astype(ml_dtypes.bfloat16)
        indices = _G.integers(0, 200, (128, 1)).astype(np.uint32)

        def kernel(src_hbm, idx_hbm):
            output = nl.ndarray((P, F), dtype=src_hbm.dtype, buffer=nl.shared_hbm)
            idx_sb = nl.load(idx_hbm)
            dst_sb = nl.ndarray((P, F), dtype=src_hbm.dtype, buffer=nl.sbuf)
            nisa.memset(dst=dst_sb, value=0)
            src_ap = src_hbm.ap(pattern=[[P, F], [1, P]], vector_offset=idx_sb, indirect_dim=0)
            nisa.dma_transpose(dst=dst_sb, src=src_ap, axes=(1, 0))
            nisa.dma_copy(dst=output, src=dst_sb)
            return output

        result = harness.run(kernel, data, indices).outputs[0]
        np.testing.assert_array_equal(result, data[indices[:, 0]].T)

    def test_gather_transpose_in_four_dimensions_of_the_documentation(self):
        data = _G.normal(size=(150, 3, 1, 32)).astype(ml_dtypes.bfloat16)
        indices = _G.integers(0, 150, (128, 2)).astype(np.uint32)

        def kernel(src_hbm, idx_hbm):
            _, d1, d2, d3 = src_hbm.shape
            F = 128 * idx_hbm.shape[1]
            idx_sb = nl.load(idx_hbm)
            dst_sb = nl.ndarray((d3, d1, d2, F), dtype=src_hbm.dtype, buffer=nl.sbuf)
            nisa.memset(dst=dst_sb, value=0)
            src_ap = src_hbm.ap(
                pattern=[[d1 * d2 * d3, F], [d2 * d3, d1], [d3, d2], [1, d3]],
                vector_offset=idx_sb,
                indirect_dim=0,
            )
            nisa.dma_transpose(dst=dst_sb, src=src_ap, axes=(3, 1, 2, 0))
            output = nl.ndarray((d3, d1, d2, F), dtype=src_hbm.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=output, src=dst_sb)
            return output

        result = harness.run(kernel, data, indices).outputs[0]
        gathered = data[indices.T.flatten()]
        np.testing.assert_array_equal(result, gathered.transpose(3, 1, 2, 0))


class ComputeTest(parameterized.TestCase):
    def test_sum_in_float32(self):
        def kernel(a, b, c):
            out = nl.ndarray(a.shape, dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_compute(out, [a, b, c], nl.add)
            return out

        parts = [_G.normal(size=(8, 8)).astype(ml_dtypes.bfloat16) for _ in range(3)]
        expected = sum(part.astype(np.float32) for part in parts)
        np.testing.assert_allclose(harness.run(kernel, *parts).outputs[0], expected, rtol=1e-6)

    def test_gather_adds_the_indexed_rows(self):
        def kernel(data, indices):
            sums = tile(2, 3, value=1)
            nisa.dma_compute(
                sums[:, :], [data.vector_select(0, nl.load(indices)), sums[:, :]], nl.add
            )
            out = nl.ndarray((2, 3), dtype=nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(out, sums)
            return out

        data = np.arange(12, dtype=np.float32).reshape(4, 3)
        result = harness.run(kernel, data, np.array([[2], [2]], np.uint32)).outputs[0]
        np.testing.assert_array_equal(result, data[[2, 2]] + 1)

    def test_scatter_adds_to_the_indexed_rows(self):
        def kernel(target, update, indices):
            idx = nl.load(indices)
            rows = target.vector_select(0, idx)
            nisa.dma_compute(rows, [rows, nl.load(update)], nl.add)
            return target

        indices = np.array([[2], [0]], np.uint32)
        target = np.ones((4, 3), np.float32)
        update = np.array([[1, 2, 3], [10, 20, 30]], np.float32)
        result = harness.run(kernel, target, update, indices).outputs[0]
        np.testing.assert_array_equal(result, [[11, 21, 31], [1, 1, 1], [2, 3, 4], [1, 1, 1]])


def _index(rows=16, columns=1, dtype="uint32", value=0):
    return tile(rows, columns, dtype=dtype, value=value)


def _filled(*shape, dtype="float32"):
    return nl.full(shape, 1, dtype, buffer=nl.hbm)


def _scatter_of_other_rows(target):
    others = target.vector_select(0, _index(1, value=2))
    return target.vector_select(0, _index(1)), [others, tile(1, 4)]


def _scatter_of_hbm(target):
    rows = target.vector_select(0, _index(1))
    return rows, [rows, _filled(1, 4)]


def _gather_into(dst):
    return dst, [_filled(32, 4).vector_select(0, _index(1)), dst]


class RuleTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        (
            "no_psum_source",
            lambda: nisa.dma_copy(hbm(4, 4), psum(4, 4)),
            "is in PSUM, which DMA cannot access",
        ),
        (
            "no_psum_destination",
            lambda: nisa.dma_copy(psum(4, 4), tile(4, 4)),
            "dst .* is in PSUM, which DMA cannot access",
        ),
        (
            "elements",
            lambda: nisa.dma_copy(hbm(4, 5), tile(4, 4)),
            r"as many elements as src \(16, \[4, 4\]\), got 20",
        ),
        (
            "hwdge_needs_v3",
            lambda: nisa.dma_copy(hbm(4, 4), tile(4, 4), dge_mode=nisa.dge_mode.hwdge),
            "hwdge needs NeuronCore-v3",
            "trn1",
        ),
        (
            "hwdge_dtypes",
            lambda: nisa.dma_copy(
                hbm(4, 4, dtype="bfloat16"), tile(4, 4), dge_mode=nisa.dge_mode.hwdge
            ),
            "hwdge needs equal dtypes",
        ),
        (
            "engine_needs_hwdge",
            lambda: nisa.dma_copy(hbm(4, 4), tile(4, 4), engine=nisa.engine.scalar),
            "engine=scalar needs dge_mode.hwdge",
        ),
        (
            "engine_of_hwdge",
            lambda: nisa.dma_copy(
                hbm(4, 4), tile(4, 4), dge_mode=nisa.dge_mode.hwdge, engine=nisa.engine.vector
            ),
            "engine must be sync or scalar",
        ),
        (
            "priority_needs_v4",
            lambda: nisa.dma_copy(hbm(4, 4), tile(4, 4), priority=0),
            "priority needs NeuronCore-v4",
        ),
        (
            "priority_range",
            lambda: nisa.dma_copy(hbm(4, 4), tile(4, 4), priority=4),
            "priority must be in 0..3, got 4",
            "trn3",
        ),
        (
            "vector_offset_needs_swdge",
            lambda: nisa.dma_copy(
                tile(16, 4),
                _filled(32, 4).vector_select(0, _index()),
                dge_mode=nisa.dge_mode.hwdge,
            ),
            "vector_offset needs dge_mode swdge or unknown, got hwdge",
        ),
        (
            "dynamic_address_needs_dge",
            lambda: nisa.dma_copy(
                tile(1, 4),
                _filled(32, 4).select(0, _index(1)),
                dge_mode=nisa.dge_mode.none,
            ),
            "run-time address needs a descriptor generation mode",
        ),
        (
            "index_must_be_an_integer",
            lambda: nisa.dma_copy(
                tile(16, 4), _filled(32, 4).vector_select(0, _index(dtype="float32"))
            ),
            "index of src must be an integer tensor",
        ),
        (
            "index_in_sbuf",
            lambda: nisa.dma_copy(
                tile(16, 4), _filled(32, 4).vector_select(0, _filled(16, 1, dtype="uint32"))
            ),
            "index of src must be in SBUF",
        ),
        (
            "transpose_axes",
            lambda: nisa.dma_transpose(
                tile(4, 4, dtype="bfloat16"), _filled(4, 4, dtype="bfloat16"), axes=(0, 1)
            ),
            r"axes of a 2-d src must be \(1, 0\)",
        ),
        (
            "transpose_dtype",
            lambda: nisa.dma_transpose(tile(4, 4), _filled(4, 4, dtype="bfloat16")),
            "dst must have the dtype of src",
        ),
        (
            "transpose_into_sbuf",
            lambda: nisa.dma_transpose(hbm(4, 4), _filled(4, 4)),
            "dst must be in SBUF",
        ),
        (
            "transpose_descriptors",
            lambda: nisa.dma_transpose(tile(4, 4), _filled(4, 4), dge_mode=nisa.dge_mode.swdge),
            "without vector_offset needs dge_mode unknown or hwdge, got swdge",
        ),
        (
            "transpose_descriptors_none",
            lambda: nisa.dma_transpose(tile(4, 4), _filled(4, 4), dge_mode=nisa.dge_mode.none),
            "without vector_offset needs dge_mode unknown or hwdge, got none",
        ),
        (
            "transpose_skips_indices",
            lambda: nisa.dma_transpose(tile(4, 4), _filled(4, 4), oob_mode=_SKIP),
            "oob_mode.skip needs a src with a run-time address",
        ),
        (
            "transpose_element_size",
            lambda: nisa.dma_transpose(tile(4, 4, dtype="uint8"), _filled(4, 4, dtype="uint8")),
            "2 or 4 bytes per element",
        ),
        (
            "transpose_shape",
            lambda: nisa.dma_transpose(tile(4, 8), _filled(4, 8)),
            r"dst must have shape \(8, 4\)",
        ),
        (
            "hardware_transpose_rows",
            lambda: nisa.dma_transpose(
                tile(64, 32, dtype="bfloat16"),
                _filled(32, 64, dtype="bfloat16"),
                dge_mode=nisa.dge_mode.hwdge,
            ),
            r"src.shape\[0\] == 16 for 2-d tiles, got 32",
        ),
        (
            "hardware_transpose_dtype",
            lambda: nisa.dma_transpose(tile(64, 16), _filled(16, 64), dge_mode=nisa.dge_mode.hwdge),
            "hwdge transposes 2-byte types",
        ),
        (
            "indirect_transpose_rows",
            lambda: nisa.dma_transpose(
                tile(64, 8, dtype="bfloat16"),
                _filled(32, 64, dtype="bfloat16").ap([[64, 8], [1, 64]], vector_offset=_index(16)),
            ),
            r"src.shape\[0\] must be a multiple of 16",
        ),
        (
            "indirect_transpose_index_dtype",
            lambda: nisa.dma_transpose(
                tile(64, 16, dtype="bfloat16"),
                _filled(32, 64, dtype="bfloat16").ap(
                    [[64, 16], [1, 64]], vector_offset=_index(16, dtype="int32")
                ),
            ),
            "indices must be a 2-d uint32 tensor",
        ),
        (
            "indirect_transpose_columns",
            lambda: nisa.dma_transpose(
                tile(64, 32, dtype="bfloat16"),
                _filled(32, 64, dtype="bfloat16").ap(
                    [[64, 32], [1, 64]], vector_offset=_index(16, 2)
                ),
            ),
            "128 if there are several columns",
        ),
        (
            "compute_operator",
            lambda: nisa.dma_compute(hbm(4, 4), [tile(4, 4), tile(4, 4)], nl.maximum),
            "reduce_op must be nl.add",
        ),
        (
            "compute_scales",
            lambda: nisa.dma_compute(
                hbm(4, 4), [tile(4, 4), tile(4, 4)], nl.add, scales=[1.0, 2.0]
            ),
            "scales must all be 1.0",
        ),
        (
            "compute_sources",
            lambda: nisa.dma_compute(hbm(4, 4), [tile(4, 4)] * 17, nl.add),
            "srcs must have 1..16 tensors, got 17",
        ),
        (
            "compute_elements",
            lambda: nisa.dma_compute(hbm(4, 4), [tile(4, 5)], nl.add),
            r"srcs\[0\] must have 16 elements as dst, got 20",
        ),
        (
            "compute_static_addresses",
            lambda: nisa.dma_compute(
                tile(1, 4), [tile(1, 4), _filled(8, 1, 4).select(0, _index(1))], nl.add
            ),
            r"srcs\[1\] must have an address known at compile time or a vector_offset",
        ),
        (
            "compute_scatter_adds_to_dst",
            lambda: nisa.dma_compute(
                _filled(32, 4).vector_select(0, _index(1)), [tile(1, 4), tile(1, 4)], nl.add
            ),
            "with a vector_offset one of srcs must be dst .* itself",
        ),
        (
            "compute_scatter_adds_to_the_rows_of_dst",
            lambda: nisa.dma_compute(*_scatter_of_other_rows(_filled(32, 4)), nl.add),
            "with a vector_offset one of srcs must be dst .* itself",
        ),
        (
            "compute_scatter_adds_sbuf",
            lambda: nisa.dma_compute(*_scatter_of_hbm(_filled(32, 4)), nl.add),
            r"srcs\[1\] must be in SBUF",
        ),
        (
            "compute_gather_adds_to_dst",
            lambda: nisa.dma_compute(
                tile(1, 4), [_filled(32, 4).vector_select(0, _index(1)), tile(1, 4)], nl.add
            ),
            "with a vector_offset one of srcs must be dst .* itself",
        ),
        (
            "compute_gather_into_sbuf",
            lambda: nisa.dma_compute(*_gather_into(_filled(1, 4)), nl.add),
            "dst must be in SBUF",
        ),
        (
            "compute_unique_indices",
            lambda: nisa.dma_compute(
                _filled(32, 4).vector_select(0, _index(value=3)),
                [_filled(16, 4), tile(16, 4)],
                nl.add,
            ),
            "an index of dst occurs twice",
        ),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)

    def test_a_raw_integer_mode_warns(self):
        with self.assertWarnsRegex(DeprecationWarning, "dge_mode=3"):
            harness.run(lambda: nisa.dma_copy(hbm(4, 4), tile(4, 4), dge_mode=3) and None)
