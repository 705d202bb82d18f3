"""Views: every method against NumPy's on the same elements, examples and limits of the API."""

import numpy as np
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_tkg import simulator
from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness


def _sb(*shape, dtype="float32"):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf)


def _counted(*shape):
    """An SBUF tensor whose element at (p, i) is 1000 p + i, and the same as NumPy."""
    tensor = _sb(*shape, dtype="int32")
    free = int(np.prod(shape[1:]))
    nisa.iota(tensor, [[1, free]], channel_multiplier=1000)
    values = 1000 * np.arange(shape[0])[:, None] + np.arange(free)
    return tensor, values.reshape(shape)


def inside(body):
    """Runs a test's body inside a kernel."""
    harness.run(lambda: body() and None)


class ExampleTest(parameterized.TestCase):
    """The examples of the API reference and the language guide."""

    def test_shapes(self):
        def body():
            t = _sb(128, 4, 8)
            self.assertEqual(t.permute((0, 2, 1)).shape, (128, 8, 4))
            self.assertEqual(_sb(128, 1, 64).broadcast(1, 8).shape, (128, 8, 64))
            self.assertEqual(_sb(128, 64).expand_dim(1).shape, (128, 1, 64))
            self.assertEqual(_sb(128, 1, 64).squeeze_dim(1).shape, (128, 64))
            self.assertEqual(_sb(128, 24).reshape_dim(1, (4, 6)).shape, (128, 4, 6))
            self.assertEqual(_sb(128, 24).reshape_dim(1, (4, -1)).shape, (128, 4, 6))
            self.assertEqual(_sb(128, 2, 3, 4).flatten_dims(1, 2).shape, (128, 6, 4))
            self.assertEqual(_sb(128, 4, 6).reshape((128, 24)).shape, (128, 24))
            self.assertEqual(_sb(128, 4, 6).reshape((128, 2, 12)).shape, (128, 2, 12))
            rearranged = _sb(128, 24).rearrange(("b", ("h", "w")), ("b", "w", "h"), {"h": 4})
            self.assertEqual(rearranged.shape, (128, 6, 4))
            self.assertEqual(_sb(128, 64).slice(1, 8, 24, 1).shape, (128, 16))
            self.assertEqual(_sb(128, 64).slice(1, 0, 64, 2).shape, (128, 32))
            self.assertEqual(_sb(128, 8, 64).select(1, 3).shape, (128, 64))
            index = _sb(1, 1, dtype="int32")
            self.assertEqual(harness.hbm(4, 128, 8).select(0, index).shape, (128, 8))
            offsets = _sb(128, 1, dtype="int32")
            gathered = harness.hbm(64, 128, 8).vector_select(0, offsets)
            self.assertEqual(gathered.shape, (128, 128, 8))
            self.assertTrue(gathered.is_indirect())
            self.assertEqual(_sb(128, 64).view(nl.uint8).shape, (128, 256))
            self.assertEqual(_sb(128, 64).view(nl.int32).shape, (128, 64))
            self.assertEqual(_sb(128, 256, dtype="uint8").view(nl.float32).shape, (128, 64))

        inside(body)

    def test_indexing_keeps_on_chip_tensors_two_dimensional(self):
        def body():
            t = _sb(64, 64, 64)
            self.assertEqual(t[0, 0, 10].shape, (1, 1))
            self.assertEqual(t[:, 0].shape, (64, 64))
            self.assertEqual(t[:, 0, 10].shape, (64, 1))
            self.assertEqual(t[0:64, 0, 0:64].shape, (64, 64))
            self.assertEqual(t[:, :, ::2].shape, (64, 64, 32))
            self.assertEqual(t[...].shape, (64, 64, 64))
            self.assertEqual(t[0, ..., :].shape, (1, 64, 64))
            self.assertEqual(t[0, ...][:, 0:32, :].shape, (1, 32, 64))
            self.assertEqual(t[nl.ds(3, 8), :].shape, (8, 64, 64))
            self.assertEqual(harness.hbm(4, 128, 32)[0, :, :].shape, (128, 32))
            self.assertEqual(harness.hbm(4, 8)[0, 1].shape, (1,))

        inside(body)

    def test_anatomy(self):
        def body():
            t = _sb(128, 64)
            self.assertEqual((t.shape, t.strides, t.offset), ((128, 64), (64, 1), 0))
            self.assertEqual((t.dtype, t.buffer, t.ndim, t.size), ("float32", nl.sbuf, 2, 8192))
            u = t.slice(dim=1, start=8, end=24)
            self.assertEqual((u.get_pattern(), u.offset), ([[64, 128], [1, 16]], 8))
            v = t.ap(pattern=[[64, 128], [1, 16]], offset=8)
            self.assertEqual((v.get_pattern(), v.offset), (u.get_pattern(), u.offset))
            self.assertTrue(t.is_contiguous())
            self.assertFalse(t[:, ::2].is_contiguous())
            self.assertFalse(_sb(4, 2, 3).permute((0, 2, 1)).is_contiguous())

        inside(body)

    def test_a_tensor_is_true_and_differs_from_none(self):
        def body():
            t = _sb(1, 1)
            self.assertTrue(bool(t))
            self.assertTrue(t != None)  # noqa: E711 - NKI code compares so, for `is` is not allowed
            self.assertFalse(t == None)  # noqa: E711

        inside(body)


class ValueTest(parameterized.TestCase):
    """The elements of a view, read by copying it with an instruction."""

    def _check(self, view, expected):
        copied = nl.ndarray(view.shape, dtype=view.dtype)
        nisa.tensor_copy(copied, view)
        np.testing.assert_array_equal(copied.numpy(), expected)

    def test_chains(self):
        def body():
            t, x = _counted(128, 4, 6)
            self._check(t[:, 1:3].permute((0, 2, 1))[:, 0, :], x[:, 1:3].transpose(0, 2, 1)[:, 0])
            self._check(t.reshape((128, 24))[:, 3:24:5], x.reshape(128, 24)[:, 3:24:5])
            self._check(t[0:64, 2].expand_dim(1).broadcast(1, 3), x[:64, 2][:, None].repeat(3, 1))
            rearranged = t.rearrange(("p", ("a", "b"), "c"), ("p", "b", "c", "a"), {"a": 2})
            self._check(rearranged, x.reshape(128, 2, 2, 6).transpose(0, 2, 3, 1))
            self._check(t.flatten_dims(1, 2), x.reshape(128, 24))
            self._check(t.select(2, 5), x[:, :, 5])
            self._check(t[64:128, ...], x[64:])

        inside(body)

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_random_slices_and_permutations(self, data):
        shape = (4, *(data.draw(st.integers(1, 5)) for _ in range(3)))
        keys = []
        for size in shape[1:]:
            start = data.draw(st.integers(0, size - 1))
            stop = data.draw(st.integers(start + 1, size))
            keys.append(slice(start, stop, data.draw(st.integers(1, 3))))
        order = data.draw(st.permutations([1, 2, 3]))

        def body():
            t, x = _counted(*shape)
            view = t[(slice(None), *keys)].permute((0, *order))
            self._check(view, x[(slice(None), *keys)].transpose(0, *order))

        inside(body)

    def test_views_share_storage(self):
        def body():
            t = _sb(128, 64)
            nisa.memset(t, 0.0)
            nisa.memset(t.reshape((128, 8, 8))[:, 2, :], 1.0)
            expected = np.zeros((128, 64))
            expected[:, 16:24] = 1
            self._check(t, expected)

        inside(body)

    def test_reinterpreted_bytes(self):
        def body():
            t = _sb(2, 2)
            nisa.memset(t, 1.0)
            self._check(t.view(nl.uint32), np.full((2, 2), 0x3F800000))
            self._check(t.view(nl.uint16), [[0, 0x3F80] * 2] * 2)
            self._check(t.ap([[4, 2], [2, 2]], offset=1, dtype=nl.bfloat16), np.ones((2, 2)))

        inside(body)

    def test_ap_addresses_the_storage_and_not_the_view(self):
        def body():
            t, x = _counted(128, 8)
            inner = t.ap(pattern=[[8, 128], [2, 4]])
            self._check(inner.ap(pattern=[[8, 128], [1, 3]]), x[:, :3])

        inside(body)

    def test_ap_inherits_the_offset_and_adds_to_it(self):
        def body():
            t, x = _counted(128, 8)
            self._check(t[:, 2:8].ap([[8, 128], [1, 3]]), x[:, 2:5])
            self._check(t[:, 2:8].ap([[8, 128], [1, 3]], offset=0), x[:, 2:5])
            self._check(t[:, 2:8].ap([[8, 128], [1, 3]], offset=1), x[:, 3:6])
            self._check(t[32:64, :].ap([[8, 32], [1, 8]], offset=0), x[32:64])

        inside(body)

    def test_a_dynamic_select_on_chip(self):
        def body():
            t, x = _counted(128, 4, 6)
            index = _sb(1, 1, dtype="int32")
            nisa.memset(index, 2)
            self._check(t.select(1, index), x[:, 2])

        inside(body)


class LimitTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("permute", lambda: _sb(4, 2, 3).permute((0, 1, 1)), "must be a permutation"),
        ("permute_partition", lambda: _sb(4, 2, 3).permute((1, 0, 2)), r"dims\[0\] must be 0"),
        ("broadcast_size", lambda: _sb(4, 2).broadcast(1, 4), r"shape\[1\] must be 1, got 2"),
        ("broadcast_partition", lambda: _sb(1, 2).broadcast(0, 4), "dim must not be 0"),
        ("expand_partition", lambda: _sb(4, 2).expand_dim(0), "dim must not be 0"),
        ("squeeze_size", lambda: _sb(4, 2, 3).squeeze_dim(1), r"shape\[1\] must be 1"),
        ("squeeze_partition", lambda: _sb(1, 2, 3).squeeze_dim(0), "dim must not be 0"),
        ("reshape_dim", lambda: _sb(4, 24).reshape_dim(1, (5, 5)), "product .* must be 24"),
        ("reshape_dim_infer", lambda: _sb(4, 24).reshape_dim(1, (5, -1)), "must divide"),
        ("reshape_partition_dim", lambda: _sb(4, 24).reshape_dim(0, (2, 2)), "dim must not be 0"),
        (
            "flatten_contiguous",
            lambda: _sb(4, 2, 3).permute((0, 2, 1)).flatten_dims(1, 2),
            "must be contiguous in memory",
        ),
        ("flatten_partition", lambda: _sb(4, 2, 3).flatten_dims(0, 1), "start_dim must be > 0"),
        ("reshape_elements", lambda: _sb(4, 6).reshape((4, 7)), "product .* must be 24"),
        ("reshape_partition", lambda: _sb(4, 6).reshape((8, 3)), r"shape\[0\] must stay 4"),
        (
            "reshape_layout",
            lambda: _sb(4, 8)[:, ::2].expand_dim(2).broadcast(2, 2).reshape((4, 8)),
            "is not a view of the layout",
        ),
        ("slice_order", lambda: _sb(4, 6).slice(1, 3, 3), "0 <= start < end <= 6"),
        ("slice_end", lambda: _sb(4, 6).slice(1, 3, 7), "0 <= start < end <= 6"),
        ("slice_step", lambda: _sb(4, 6).slice(1, 0, 6, 0), "step must be 1 or more"),
        ("index", lambda: _sb(4, 6)[:, 6], r"index must be in 0..5, got 6"),
        ("index_slice", lambda: _sb(4, 6)[:, 2:9], "0 <= start < stop <= 6"),
        ("index_ds", lambda: _sb(4, 6)[:, nl.ds(4, 3)], r"must lie in 0..6, got ds\(4, 3\)"),
        ("too_many_indices", lambda: _sb(4, 6)[0, 0, 0], "at most 2 indices and one ..., got 3"),
        ("select", lambda: _sb(4, 6, 2).select(1, 6), "0 <= index < 6"),
        (
            "select_partition",
            lambda: _sb(4, 6).select(0, _sb(1, 1, dtype="int32")),
            "dim must not be the partition",
        ),
        (
            "second_dynamic_select",
            lambda: (
                harness.hbm(4, 5, 6)
                .select(0, _sb(1, 1, dtype="int32"))
                .select(0, _sb(1, 1, dtype="int32"))
            ),
            "one dynamic select per tensor",
        ),
        (
            "vector_select_on_chip",
            lambda: _sb(4, 6).vector_select(0, _sb(4, 1, dtype="int32")),
            "only HBM tensors",
        ),
        (
            "vector_select_dim",
            lambda: harness.hbm(4, 6).vector_select(1, _sb(4, 1, dtype="int32")),
            "dim must be 0, got 1",
        ),
        (
            "slice_of_the_selected_dim",
            lambda: harness.hbm(8, 6).vector_select(0, _sb(4, 1, dtype="int32"))[0:2],
            "cannot be sliced or selected",
        ),
        (
            "view_contiguous",
            lambda: _sb(4, 6)[:, ::2].view(nl.uint8),
            "last dimension must be contiguous",
        ),
        (
            "view_of_static_addresses",
            lambda: harness.hbm(4, 6).select(0, harness.tile(1, 1, dtype="int32")).view(nl.int32),
            "not after a dynamic select",
        ),
        (
            "view_divides",
            lambda: _sb(4, 6, dtype="uint8").view(nl.float32),
            "must divide by 4",
        ),
        (
            "ap_two_offsets",
            lambda: harness.hbm(4, 6).ap(
                [[6, 4], [1, 6]],
                scalar_offset=_sb(1, 1, dtype="int32"),
                vector_offset=_sb(4, 1, dtype="int32"),
            ),
            "exclude each other",
        ),
        (
            "ap_stepped_partitions",
            lambda: nisa.memset(_sb(16, 32).ap([[64, 8], [1, 32]]), 0),
            "partition stride must be 32",
        ),
        (
            "ap_outside_the_partition",
            lambda: nisa.memset(_sb(16, 32).ap([[32, 16], [1, 33]]), 0),
            "element 33 of 32",
        ),
        (
            "ap_outside_the_partitions",
            lambda: nisa.memset(_sb(16, 32).ap([[32, 17], [1, 32]]), 0),
            "partition 17 of 16",
        ),
        (
            "ap_outside_hbm",
            lambda: nisa.dma_copy(_sb(4, 6), harness.hbm(4, 6).ap([[6, 4], [1, 6]], offset=1)),
            "reaches byte 100 of the 96",
        ),
        (
            "dynamic_index_range",
            lambda: nisa.tensor_copy(
                harness.tile(4, 2), harness.tile(4, 3, 2).select(1, nisa.register_alloc(3))
            ),
            r"run-time index 3 must be in 0..2",
        ),
    )
    def test_limit(self, body, message):
        with self.assertRaisesRegex(simulator.NkiValidationError, message):
            inside(body)

    def test_assignment_is_not_part_of_nki(self):
        def body():
            _sb(4, 4)[0:1] = 3

        with self.assertRaisesRegex(TypeError, "not part of NKI"):
            inside(body)

    def test_tensor_indirection_is_named(self):
        with self.assertRaisesRegex(simulator.NotSimulatedError, "tensor indirection"):
            inside(lambda: _sb(4, 4).indirect(_sb(4, 1)))
