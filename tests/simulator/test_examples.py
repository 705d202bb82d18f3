"""Examples of the NKI documentation that are whole kernels, with values computed by NumPy."""

import os
from unittest import mock

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness

_G = np.random.default_rng(0)


class LanguageGuideTest(parameterized.TestCase):
    def test_tensor_add(self):
        def nki_tensor_add_kernel(a_input, b_input):
            assert a_input.shape == b_input.shape
            assert a_input.dtype == b_input.dtype
            assert a_input.shape[0] <= nl.tile_size.pmax
            a_tile = nl.ndarray(shape=a_input.shape, dtype=a_input.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=a_tile, src=a_input)
            b_tile = nl.ndarray(shape=b_input.shape, dtype=b_input.dtype, buffer=nl.sbuf)
            nisa.dma_copy(dst=b_tile, src=b_input)
            c_tile = nl.ndarray(shape=a_input.shape, dtype=a_input.dtype, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=c_tile, data1=a_tile, data2=b_tile, op=nl.add)
            c_output = nl.ndarray(dtype=a_input.dtype, shape=a_input.shape, buffer=nl.shared_hbm)
            nisa.dma_copy(dst=c_output, src=c_tile)
            return c_output

        a, b = (_G.normal(size=(128, 512)).astype(np.float16) for _ in range(2))
        expected = (a.astype(np.float32) + b.astype(np.float32)).astype(np.float16)
        result = simulator.simulate(nki_tensor_add_kernel)(a, b)
        np.testing.assert_array_equal(result, expected)

    def test_a_view_after_a_chain(self):
        def body():
            t = nl.ndarray((128, 4, 16), dtype=nl.float32, buffer=nl.sbuf)
            u = t[0:64, :, :].permute((0, 2, 1))[:, 0, :]
            self.assertEqual(u.shape, (64, 4))
            every_other = nl.ndarray((128, 1024), dtype=nl.float16, buffer=nl.sbuf)
            self.assertEqual(every_other.ap(pattern=[(1024, 128), (2, 512)]).shape, (128, 512))

        harness.run(body)


class AccessPatternTest(parameterized.TestCase):
    def test_a_slice_as_a_pattern(self):
        # t[0:16, 8:16] of a (16, 16) tile.
        def body(x):
            t = nl.load(x)
            copied = nl.ndarray((16, 8), dtype=nl.float32)
            nisa.tensor_copy(copied, t.ap(pattern=[[16, 16], [1, 8]], offset=8))
            np.testing.assert_array_equal(copied.numpy(), x.numpy()[:, 8:16])

        harness.run(body, _G.normal(size=(16, 16)).astype(np.float32))

    def test_scalar_dynamic_select(self):
        def kernel(A):
            batch_idx = nl.ndarray((1, 1), nl.int32, buffer=nl.sbuf)
            nisa.memset(batch_idx, value=3)
            src = A.select(0, batch_idx)
            result = nl.ndarray((128, 512), A.dtype, buffer=nl.shared_hbm)
            nisa.dma_copy(src=src, dst=result[...])
            return result

        x = _G.normal(size=(4, 128, 512)).astype(np.float32)
        np.testing.assert_array_equal(harness.run(kernel, x).outputs[0], x[3])

    @parameterized.parameters(True, False)
    def test_vector_dynamic_access(self, by_select):
        def kernel(A):
            offsets = nl.ndarray((64, 1), nl.int32, nl.sbuf)
            nisa.iota(offsets, [[1, 1]], 0, 2)
            if by_select:
                src = A.vector_select(0, offsets)
            else:
                src = A.ap([[512, 64], [1, 512]], 0, vector_offset=offsets, indirect_dim=0)
            result_sb = nl.ndarray((64, 512), nl.float32, buffer=nl.sbuf)
            result_hbm = nl.ndarray((64, 512), nl.float32, buffer=nl.shared_hbm)
            nisa.dma_copy(src=src, dst=result_sb, name="inst0")
            nisa.dma_copy(result_hbm, result_sb, name="copy1")
            return result_hbm

        x = _G.normal(size=(128, 512)).astype(np.float32)
        np.testing.assert_array_equal(harness.run(kernel, x).outputs[0], x[::2])


class LoopTest(parameterized.TestCase):
    @parameterized.parameters("affine_range", "sequential_range", "static_range", "dynamic_range")
    def test_squares_tile_by_tile(self, name):
        def kernel(input_tensor):
            out_tensor = nl.ndarray(input_tensor.shape, nl.float32, buffer=nl.shared_hbm)
            for i in getattr(nl, name)(input_tensor.shape[1] // 512):
                columns = nl.ds(int(i) * 512, 512)
                tile = nl.load(input_tensor[0:128, columns])
                result = nl.multiply(tile, tile)
                nl.store(out_tensor[0:128, columns], result)
            return out_tensor

        x = _G.normal(size=(128, 1024)).astype(np.float32)
        np.testing.assert_array_equal(harness.run(kernel, x).outputs[0], x * x)


class TwoCoreTest(parameterized.TestCase):
    def test_core_barrier(self):
        # Each core writes half of a shared tensor, and both read all of it.
        batch_size, hidden_dim = 8, 16

        def kernel(x):
            core_id = nl.program_id(0)
            shared = nl.ndarray((batch_size, hidden_dim), nl.float32, nl.shared_hbm, name="s")
            half = nl.ds(core_id * batch_size // 2, batch_size // 2)
            nisa.dma_copy(dst=shared[half, :], src=nl.load(x[half, :]))
            nisa.core_barrier(data=shared, cores=(0, 1))
            out = nl.ndarray((2, hidden_dim), nl.float32, nl.shared_hbm, name="out")
            total = nl.ndarray((1, hidden_dim), nl.float32)
            nisa.tensor_partition_reduce(total, nl.add, nl.load(shared))
            nisa.dma_copy(out[core_id : core_id + 1], total)
            return out

        x = _G.normal(size=(batch_size, hidden_dim)).astype(np.float32)
        result = harness.run(kernel, x, lnc=2, ordering="dependencies").outputs[0]
        expected = x.astype(np.float64).sum(axis=0)
        np.testing.assert_allclose(result, [expected, expected], rtol=1e-4, atol=1e-5)

    def test_sendrecv_in_a_ring(self):
        def kernel(x):
            num_cores = 2
            current_rank = nl.program_id()
            next_rank = (current_rank + 1) % num_cores
            prev_rank = (current_rank - 1) % num_cores
            send_data = nl.load(x[nl.ds(current_rank * 4, 4), :])
            recv_buffer = nl.ndarray((4, 8), dtype=nl.float32, buffer=nl.sbuf)
            nisa.sendrecv(
                src=send_data,
                dst=recv_buffer,
                send_to_rank=next_rank,
                recv_from_rank=prev_rank,
                pipe_id=0,
            )
            out = nl.ndarray((8, 8), nl.float32, nl.shared_hbm, name="out")
            nisa.dma_copy(out[nl.ds(current_rank * 4, 4), :], recv_buffer)
            return out

        x = _G.normal(size=(8, 8)).astype(np.float32)
        result = harness.run(kernel, x, lnc=2).outputs[0]
        np.testing.assert_array_equal(result, np.concatenate([x[4:], x[:4]]))


class RegisterTest(parameterized.TestCase):
    def test_ways_to_fill_a_register(self):
        def body():
            zero = nl.zeros([1, 1], dtype=nl.int32, buffer=nl.sbuf)
            loaded = nisa.register_alloc(None)
            nisa.register_load(loaded, zero)
            counter = nisa.register_alloc()
            nisa.register_move(counter, 10)
            copied = nisa.register_alloc()
            nisa.register_move(copied, counter)
            bound = nisa.register_alloc()
            nisa.register_load(bound, nl.ones([1], dtype=nl.int32, buffer=nl.sbuf))
            stored = nl.ndarray([1], dtype=nl.int32, buffer=nl.sbuf)
            nisa.register_store(stored, counter)
            values = [int(r) for r in (nisa.register_alloc(0), loaded, counter, copied, bound)]
            self.assertEqual(values, [0, 0, 10, 10, 1])
            self.assertEqual(stored.numpy().tolist(), [[10]])

        harness.run(body)

    def test_a_loop_while_a_register_is_not_zero(self):
        seen = []

        def body():
            count = nl.full((1, 1), 3, dtype=nl.int32)
            one = nl.full((1, 1), 1, dtype=nl.int32)
            reg = nisa.register_alloc()
            nisa.register_load(reg, count)
            while reg:
                seen.append(int(reg))
                nisa.tensor_tensor(count, count, one, nl.subtract)
                nisa.register_load(reg, count)

        harness.run(body)
        self.assertEqual(seen, [3, 2, 1])


class TargetTest(parameterized.TestCase):
    def test_the_environment_names_the_target(self):
        with mock.patch.dict(os.environ, {"NEURON_PLATFORM_TARGET_OVERRIDE": "gen4"}):
            record = simulator.run(lambda: None, [()]).record
        self.assertEqual(record.target, "trn3")
