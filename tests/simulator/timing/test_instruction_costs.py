"""Instruction costs against values worked out by hand from the documents' formulas."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.simulator import isa
from jax_tkg.simulator.machine import machine
from jax_tkg.simulator.timing.costs import TRN1, TRN2, TRN3
from jax_tkg.simulator.timing.instruction_costs import (
    FORMULAS,
    Operand,
    Transfer,
    collective_time,
    dma_engine_times,
    instruction_cycles,
)


def _sbuf(dtype, free, partitions=128, **more):
    return Operand(dtype, "sbuf", partitions, free, **more)


def _psum(dtype, free, partitions=128):
    return Operand(dtype, "psum", partitions, free)


def _vector(opcode, attributes=None, costs=TRN2, engine="vector", **operands):
    return instruction_cycles(costs, opcode, engine, operands, attributes)


class TensorEngineTest(parameterized.TestCase):
    @parameterized.parameters(
        # max(min(64, N_stationary), N_moving), 4 times that for float32
        ("bfloat16", 128, 512, 512),
        ("bfloat16", 128, 1, 64),
        ("bfloat16", 16, 1, 16),
        ("float32", 128, 512, 2048),
        ("float8_e4m3", 128, 128, 128),
    )
    def test_matmul(self, dtype, columns, moving, expected):
        cycles = instruction_cycles(
            TRN2,
            "nc_matmul",
            "tensor",
            {
                "dst": _psum("float32", moving),
                "stationary": _sbuf(dtype, columns),
                "moving": _sbuf(dtype, moving),
            },
            {"is_transpose": False},
        )
        self.assertEqual(cycles, expected)

    def test_load_of_stationary_tiles_can_be_slower(self):
        slow = dataclasses.replace(TRN2, stationary_load=128.0)
        operands = {
            "dst": _psum("float32", 8),
            "stationary": _sbuf("bfloat16", 128),
            "moving": _sbuf("bfloat16", 8),
        }
        self.assertEqual(instruction_cycles(slow, "nc_matmul", "tensor", operands), 128)

    def test_double_row_takes_no_longer_for_twice_the_contraction(self):
        operands = {
            "dst": _psum("float32", 512),
            "stationary": _sbuf("float8_e4m3", 256),
            "moving": _sbuf("float8_e4m3", 1024),
        }
        cycles = instruction_cycles(TRN2, "nc_matmul", "tensor", operands, {"double_row": True})
        self.assertEqual(cycles, 512)

    def test_float32_transpose_mode_is_twice_as_fast(self):
        operands = {
            "dst": _psum("float32", 128),
            "stationary": _sbuf("float32", 128),
            "moving": _sbuf("float32", 128),
        }
        plain = instruction_cycles(TRN2, "nc_matmul", "tensor", operands)
        transposed = instruction_cycles(
            TRN2, "nc_matmul", "tensor", operands, {"is_transpose": True}
        )
        self.assertEqual((plain, transposed), (512, 256))

    @parameterized.parameters((128, 128, 128), (16, 128, 64), (16, 8, 16))
    def test_transpose(self, partitions, free, expected):
        operands = {
            "dst": _psum("bfloat16", partitions, free),
            "data": _sbuf("bfloat16", free, partitions),
        }
        self.assertEqual(instruction_cycles(TRN2, "nc_transpose", "tensor", operands), expected)


class VectorEngineTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("float32", "float32", {}, 1024),
        ("both_16_bit_packed", "bfloat16", {}, 256),
        ("both_16_bit_strided", "bfloat16", {"contiguous": False}, 512),
    )
    def test_copy_modes(self, dtype, more, expected):
        cycles = _vector("tensor_copy", dst=_sbuf(dtype, 1024, **more), src=_sbuf(dtype, 1024))
        self.assertEqual(cycles, expected)

    def test_copy_from_psum(self):
        dst = _sbuf("bfloat16", 512)
        self.assertEqual(_vector("tensor_copy", dst=dst, src=_psum("bfloat16", 512)), 256)
        self.assertEqual(_vector("tensor_copy", dst=dst, src=_psum("float32", 512)), 512)

    def test_scalar_columns_do_not_matter_to_the_mode(self):
        cycles = _vector(
            "tensor_scalar",
            dst=_sbuf("bfloat16", 1024),
            data=_sbuf("bfloat16", 1024),
            operand0=_sbuf("float32", 1),
        )
        self.assertEqual(cycles, 256)

    def test_performance_mode_of_the_scalar_engine_is_new_in_v4(self):
        operands = {"dst": _sbuf("bfloat16", 1024), "src": _sbuf("bfloat16", 1024)}
        self.assertEqual(_vector("tensor_copy", engine="scalar", **operands), 1024)
        self.assertEqual(_vector("tensor_copy", engine="scalar", costs=TRN3, **operands), 512)

    @parameterized.named_parameters(
        ("float32_in_sbuf", "float32", "sbuf", 1024),
        ("one_in_psum", "float32", "psum", 512),
        ("bfloat16_in_sbuf", "bfloat16", "sbuf", 512),
    )
    def test_tensor_tensor(self, dtype, space, expected):
        cycles = _vector(
            "tensor_tensor",
            dst=_sbuf(dtype, 512),
            data1=Operand(dtype, space, 128, 512),
            data2=_sbuf(dtype, 512),
        )
        self.assertEqual(cycles, expected)

    @parameterized.parameters(
        ("bfloat16", "add", 512), ("bfloat16", "min", 1024), ("float32", "add", 1024)
    )
    def test_reduce(self, dtype, op, expected):
        cycles = _vector("tensor_reduce", {"op": op}, dst=_sbuf(dtype, 1), data=_sbuf(dtype, 1024))
        self.assertEqual(cycles, expected)

    def test_others(self):
        data = {"dst": _sbuf("float32", 300), "data": _sbuf("float32", 300)}
        self.assertEqual(_vector("reciprocal", **data), 2400)
        self.assertEqual(_vector("bn_aggr", **data), 1300)
        self.assertEqual(_vector("tensor_scalar_reduce", **data), 364)
        self.assertEqual(_vector("tensor_tensor_scan", **data), 600)
        self.assertEqual(_vector("nc_stream_shuffle", **data), 300)
        self.assertEqual(_vector("memset", {"value": 0}, dst=_sbuf("bfloat16", 512)), 256)
        self.assertEqual(_vector("memset", dst=_sbuf("bfloat16", 512)), 512)

    def test_scalar_tensor_tensor(self):
        operators = {"op0": "subtract", "op1": "multiply"}
        for dtype, attributes, expected in (
            ("bfloat16", operators, 512),
            ("bfloat16", {}, 1024),
            ("float32", operators, 1024),
        ):
            cycles = _vector(
                "scalar_tensor_tensor",
                attributes,
                dst=_sbuf(dtype, 512),
                data=_sbuf(dtype, 512),
                operand1=_sbuf(dtype, 512),
            )
            self.assertEqual(cycles, expected)

    def test_predicated_copy(self):
        rest = {"dst": _sbuf("float32", 512), "predicate": _psum("float32", 512)}
        self.assertEqual(_vector("tensor_copy_predicated", src=_sbuf("float32", 512), **rest), 512)
        self.assertEqual(_vector("tensor_copy_predicated", src=_psum("float32", 512), **rest), 1024)

    def test_new_in_v4(self):
        data = {"dst": _sbuf("bfloat16", 1024), "src": _sbuf("bfloat16", 1024)}
        self.assertEqual(_vector("exponential", costs=TRN3, **data), 256)


class FixedCostTest(parameterized.TestCase):
    def test_small_instruction(self):
        """64 cycles, and the static overhead of 100 for few elements."""
        data = {"dst": _sbuf("float32", 1), "data": _sbuf("float32", 1)}
        self.assertEqual(_vector("activation", engine="scalar", **data), 164)
        wide = {"dst": _sbuf("float32", 128), "data": _sbuf("float32", 128)}
        self.assertEqual(_vector("activation", engine="scalar", **wide), 128)

    def test_published_interval_of_dependent_small_instructions(self):
        """The performance guide's profile: 264 cycles of the Scalar Engine from one to the next,
        each of one element per partition and dependent on the last."""
        data = {"dst": _sbuf("float32", 1), "data": _sbuf("float32", 1)}
        interval = _vector("activation", engine="scalar", **data) + TRN2.overhead
        self.assertEqual(interval, 264)

    def test_reduction_is_read_out(self):
        data = {"dst": _sbuf("float32", 512), "data": _sbuf("float32", 512)}
        reduced = _vector("activation", engine="scalar", reduce_res=_sbuf("float32", 1), **data)
        self.assertEqual(reduced, 576)
        self.assertEqual(_vector("activation", engine="scalar", **data), 512)

    def test_wide_strides_halve_the_rate_of_v2(self):
        strided = {
            "dst": _sbuf("float32", 512),
            "data": _sbuf("float32", 512, contiguous=False, wide_stride=True),
        }
        for costs, expected in ((TRN1, 1024), (TRN2, 512)):
            cycles = _vector("activation", engine="scalar", costs=costs, **strided)
            self.assertEqual(cycles, expected)

    def test_gpsimd_start(self):
        tile = {"dst": _sbuf("int32", 512)}
        self.assertEqual(_vector("iota", engine="gpsimd", **tile), 662)
        self.assertEqual(_vector("memset", engine="gpsimd", **tile), 662)

    def test_local_gather(self):
        """C = ((28 + 4) / 4) / min(4 / 2, 1) = 8 indices a cycle."""
        cycles = _vector(
            "local_gather",
            engine="gpsimd",
            dst=_sbuf("bfloat16", 800),
            src_buffer=_sbuf("bfloat16", 4096),
            index=_sbuf("uint16", 50),
        )
        self.assertEqual(cycles, 250)

    def test_topk(self):
        """Of the 16 partitions' elements only as many as are searched count."""
        tiles = {"src": _sbuf("bfloat16", 4000), "val_dst": _sbuf("bfloat16", 8)}
        for searched, expected in ((16, 72), (64000, 256008)):
            cycles = _vector("topk", {"n": searched}, engine="gpsimd", **tiles)
            self.assertEqual(cycles, expected)

    def test_unknown_instruction(self):
        with self.assertRaisesRegex(ValueError, "opcode 'frobnicate' has no cost formula"):
            _vector("frobnicate", dst=_sbuf("float32", 1))


class DmaTest(parameterized.TestCase):
    @parameterized.named_parameters(
        # Published: the DMA overview's examples 1 and 2, what one engine is busy.
        ("four_rows_of_8_kib", 8192, 4, 1416, 0.05),
        ("eight_rows_of_256_bytes", 256, 8, 97, 0.15),
    )
    def test_published_transfers(self, row, rows, published, error):
        """The rows are one contiguous run in HBM."""
        (time,) = dma_engine_times(TRN2, Transfer("dma_copy", row, (rows,), row * rows, 1))
        self.assertAlmostEqual(time, published, delta=error * published)

    def test_published_product(self):
        """The tiled product loads [128, 128] and [128, 512] of float32 each 39.89 ms / 32768."""
        times = [
            dma_engine_times(TRN2, Transfer("dma_copy", n, (8,), n, 1))[0] for n in (512, 2048)
        ]
        self.assertBetween(sum(times), 0.95 * 39.89e6 / 32768, 1.02 * 39.89e6 / 32768)

    @parameterized.parameters((4096, 0.97, 0.08), (16384, 0.99, 0.02))
    def test_figure_of_throughput(self, row, share, error):
        """The DMA overview's figure, with a run for each row; below 2 KiB it shows an interval
        from copy to copy, which is the trigger's."""
        (time,) = dma_engine_times(TRN2, Transfer("dma_copy", row, (8,), row, 1))
        self.assertAlmostEqual(8 * row / time / (362.5 / 16), share, delta=error)

    def test_dma_bound_and_hbm_bound(self):
        row, run = 16384, TRN2.dma_run
        on_chip = dma_engine_times(TRN2, Transfer("dma_copy", row, (1,), row, 0))
        self.assertEqual(on_chip, [row / 23 + run])
        from_hbm = dma_engine_times(TRN2, Transfer("dma_copy", row, (1,), row, 1))
        self.assertAlmostEqual(from_hbm[0], row / (362.5 / 16) + run)
        both = dma_engine_times(TRN2, Transfer("dma_copy", row, (1,), row, 2))
        self.assertAlmostEqual(both[0] - run, 2 * (from_hbm[0] - run))
        # Trainium3's DMA engines are slower than its HBM.
        self.assertEqual(
            dma_engine_times(TRN3, Transfer("dma_copy", row, (1,), row, 1)), [row / 33 + run]
        )

    def test_transposes_and_sums(self):
        row, run = 46_000, TRN2.dma_run
        for opcode, sides, share in (
            ("dma_transpose", 0, 0.5),
            ("dma_compute", 0, 0.5),
            ("dma_copy", 0, 1.0),
        ):
            (time,) = dma_engine_times(TRN2, Transfer(opcode, row, (1,), row, sides))
            self.assertAlmostEqual(time, row / 23 / share + run)
        (time,) = dma_engine_times(TRN3, Transfer("dma_transpose", 33_000, (1,), 33_000, 1))
        self.assertAlmostEqual(time, 1000 / 0.9 + run)

    def test_every_run_costs(self):
        """16384 bytes in runs of 2, and rows of an engine that are one run."""
        (short,) = dma_engine_times(TRN2, Transfer("dma_copy", 16384, (1,), 2, 0))
        self.assertAlmostEqual(short, 16384 / 23 + 8192 * TRN2.dma_run)
        (joined,) = dma_engine_times(TRN2, Transfer("dma_copy", 64, (8,), 8 * 64, 0))
        self.assertAlmostEqual(joined, 8 * 64 / 23 + TRN2.dma_run)

    def test_rows_of_each_engine(self):
        times = dma_engine_times(TRN2, Transfer("dma_copy", 46, (8, 8, 3), 46, 0))
        each = 2 + TRN2.dma_run
        np.testing.assert_allclose(times, [8 * each, 8 * each, 3 * each])


class CollectiveTest(absltest.TestCase):
    def test_time(self):
        self.assertEqual(collective_time(TRN2, "all_reduce", 16_000, 1), 0)
        self.assertAlmostEqual(collective_time(TRN2, "all_reduce", 16_000, 4), 17_500 + 150)
        self.assertAlmostEqual(collective_time(TRN2, "all_gather", 16_000, 4), 17_500 + 300)
        self.assertAlmostEqual(collective_time(TRN2, "reduce_scatter", 16_000, 4), 17_500 + 75)


class CompletenessTest(absltest.TestCase):
    def test_every_instruction_of_the_simulator_is_priced(self):
        moved = {"dma_copy", "dma_compute", "dma_transpose", "sendrecv", "core_barrier"}
        untimed = {"register_alloc", "register_move", "get_nc_version", "get_nc_sub_version"}
        unsimulated = {"rand_get_state", "rand_set_state"}
        for name in isa.__all__:
            function = getattr(isa, name)
            if not callable(function) or isinstance(function, type):
                continue
            if getattr(function, "__module__", "").startswith(machine.__package__):
                self.assertIn(name, {*FORMULAS, *moved, *untimed, *unsimulated})

    def test_every_formula_has_text_and_source(self):
        for name, formula in FORMULAS.items():
            self.assertNotEmpty(formula.text, name)
            self.assertNotEmpty(formula.source, name)


if __name__ == "__main__":
    absltest.main()
