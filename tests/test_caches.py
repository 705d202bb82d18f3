"""Allocation of caches."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.bits import Bits, as_bits, without_bits
from jax_tkg.caches import (
    SMALLEST_CONTEXT,
    allocate_blocks,
    allocate_caches,
    block_slots,
    compact,
    context_bucket,
    fill_ring,
    insert,
    ring_capacity,
    ring_slots,
    share_out,
)


class AllocateCachesTest(parameterized.TestCase):
    def test_lists(self) -> None:
        K_caches, V_caches = allocate_caches(3, B=2, k=4, d=64, S_max=10, dtype=jnp.bfloat16)
        self.assertEqual([c.shape for c in K_caches], [(2, 4, 64, 10)] * 3)
        self.assertEqual([c.shape for c in V_caches], [(2, 4, 10, 64)] * 3)
        arrays = [*K_caches, *V_caches]
        self.assertTrue(all(c.dtype == jnp.bfloat16 and not c.any() for c in arrays))
        # Arrays that share a buffer cannot all be donated.
        self.assertLen({c.unsafe_buffer_pointer() for c in arrays}, 6)

    def test_stacked(self) -> None:
        K_caches, V_caches = allocate_caches(
            3, B=2, k=4, d=64, S_max=10, dtype=jnp.float32, stacked=True
        )
        self.assertEqual(K_caches.shape, (3, 2, 4, 64, 10))
        self.assertEqual(V_caches.shape, (3, 2, 4, 10, 64))
        self.assertFalse(K_caches.any() or V_caches.any())

    def test_kinds(self) -> None:
        sizes: dict[str, Any] = {"B": 2, "k": 4, "d": 64, "S_max": (10, 20), "dtype": jnp.float32}
        kinds = (0, 1, 0)
        lists = allocate_caches(3, **sizes, layer_kinds=kinds)
        self.assertEqual([c.shape[-1] for c in lists[0]], [10, 20, 10])
        _, stacks = allocate_caches(3, **sizes, layer_kinds=kinds, stacked=True)
        self.assertEqual([c.shape for c in stacks], [(2, 2, 4, 10, 64), (1, 2, 4, 20, 64)])
        with self.assertRaisesRegex(ValueError, "S_max: expected a capacity for each of 1 kinds"):
            allocate_caches(3, **sizes)

    def test_sizes_of_numpy(self) -> None:
        K_caches, _ = allocate_caches(
            1,
            B=2,
            k=4,
            d=64,
            S_max=np.int64(10),  # type: ignore[arg-type]
            dtype=jnp.float32,
        )
        self.assertEqual(K_caches[0].shape, (2, 4, 64, 10))

    @parameterized.parameters(
        ({"context_parallel": 0}, "context_parallel: expected at least 1, got 0"),
        ({"B": -2}, "B: expected at least 1, got -2"),
        ({"num_layers": 0}, "num_layers: expected at least 1, got 0"),
        ({"S_max": (8, 0)}, r"S_max\[1\]: expected at least 1, got 0"),
        ({"layer_kinds": (0, -1, 1)}, r"layer_kinds\[1\]: expected a kind of at least 0, got -1"),
        ({"S_max": 8.0}, "S_max: expected an integer, got 8.0"),
    )
    def test_sizes_that_cannot_be(self, changes: dict[str, Any], message: str) -> None:
        sizes: dict[str, Any] = {"num_layers": 3, "B": 2, "k": 1, "d": 4, "S_max": (8, 16)}
        options = {"dtype": jnp.float32, "layer_kinds": (0, 0, 1)}
        with self.assertRaisesRegex((TypeError, ValueError), f"^{message}"):
            allocate_caches(**{**sizes, **options, **changes})

    def test_sharding(self) -> None:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
        spec = jax.sharding.PartitionSpec(None, "tp")
        sharding = jax.sharding.NamedSharding(mesh, spec)
        sizes = {"B": 1, "k": 4, "d": 64, "S_max": 10}
        for caches in allocate_caches(2, **sizes, dtype=jnp.float32, sharding=sharding):
            for cache in caches:
                self.assertEqual(cache.sharding, sharding)
                self.assertEqual(cache.addressable_shards[0].data.shape[1], 2)


class BlocksTest(absltest.TestCase):
    def test_allocated(self) -> None:
        K_caches, V_caches = allocate_blocks(
            2, blocks=5, k=4, d=64, block_len=16, dtype=jnp.float32, stacked=True
        )
        self.assertEqual(K_caches.shape, (2, 5, 4, 64, 16))
        self.assertEqual(V_caches.shape, (2, 5, 4, 16, 64))

    def test_slots(self) -> None:
        tables = jnp.asarray([[7, 2], [3, -1]])
        positions = jnp.asarray([[0, 5, -1], [3, 4, 9]])
        got = block_slots(positions, tables, 4)
        np.testing.assert_array_equal(got, [[28, 9, -1], [15, -1, -1]])


class InsertTest(parameterized.TestCase):
    @parameterized.product(stacked=(False, True), bits=(False, True))
    def test_a_row(self, stacked: bool, bits: bool) -> None:
        """One program for all rows; the slots after the new ones keep what they hold."""
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Any:
            layers = [rng.standard_normal(shape).astype(jnp.bfloat16) for _ in range(2)]
            form = as_bits if bits else jnp.asarray
            return form(np.stack(layers)) if stacked else [form(layer) for layer in layers]

        old, new = (draw(3, 2, 4, 6), draw(3, 2, 6, 4)), (draw(1, 2, 4, 5), draw(1, 2, 5, 4))
        # A function of its own: jit's cache belongs to the function.
        program = jax.jit(lambda *given: insert(*given))
        for row in (0, 2):
            got = program(*old, row, *new)
            for before, after, own, axis in zip(old, got, new, (-1, -2), strict=True):
                for layer in range(2):
                    want = np.array(self._layer(before, layer))
                    room = np.moveaxis(want[row], axis, 0)
                    room[:5] = np.moveaxis(self._layer(own, layer)[0], axis, 0)
                    np.testing.assert_array_equal(self._layer(after, layer), want)
        self.assertEqual(program._cache_size(), 1)

    def _layer(self, caches: Any, layer: int) -> np.ndarray:
        one = caches[layer]
        return np.asarray(one.values() if isinstance(one, Bits) else one)

    def test_too_many_slots(self) -> None:
        old = [jnp.zeros((2, 1, 4, 6))], [jnp.zeros((2, 1, 6, 4))]
        new = [jnp.zeros((1, 1, 4, 7))], [jnp.zeros((1, 1, 7, 4))]
        with self.assertRaisesRegex(ValueError, "K_new: expected at most the 6 slots .* got 7"):
            insert(*old, 0, *new)

    @parameterized.parameters(
        ((2, 1, 4, 3), r"K_new: expected shape \[1, 1, 4, T\], got \[2, 1, 4, 3\]"),
        ((1, 1, 3, 3), r"K_new: expected shape \[1, 1, 4, T\], got \[1, 1, 3, 3\]"),
        ((1, 2, 4, 3), r"K_new: expected shape \[1, 1, 4, T\], got \[1, 2, 4, 3\]"),
        ((1, 4, 3), r"K_new: expected shape \[1, 1, 4, T\], got \[1, 4, 3\]"),
    )
    def test_other_sizes(self, shape: tuple[int, ...], message: str) -> None:
        """Else another row, or a part of the features, would be written."""
        old = jnp.zeros((3, 1, 4, 6)), jnp.zeros((3, 1, 6, 4))
        for form in (lambda one: one, lambda one: [one]):
            with self.assertRaisesRegex(ValueError, f"^{message}$"):
                insert(*map(form, old), 2, form(jnp.ones(shape)), form(jnp.ones((1, 1, 3, 4))))

    def test_another_container(self) -> None:
        old = [jnp.zeros((3, 1, 4, 6))] * 2, [jnp.zeros((3, 1, 6, 4))] * 2
        new = jnp.ones((1, 1, 4, 2)), jnp.ones((1, 1, 2, 4))
        with self.assertRaisesRegex(ValueError, "^K_new: expected a sequence of 2, .*, got 1$"):
            insert(*old, 0, [new[0]], [new[1]])
        with self.assertRaisesRegex(ValueError, "^K_new: expected a sequence of 2, .*, got Array"):
            insert(*old, 0, *new)
        with self.assertRaisesRegex(TypeError, "^K_new: expected an array, .*, got list$"):
            insert(old[0][0], old[1][0], 0, [new[0]], [new[1]])

    @parameterized.product(
        held=("array", "bits"),
        given=("array", "bits"),
        dtypes=(
            ("bfloat16", "float16"),
            ("bfloat16", "float32"),
            ("float16", "bfloat16"),
            ("float32", "bfloat16"),
            ("bfloat16", "bfloat16"),
            ("float8_e4m3fn", "float8_e4m3fn"),
        ),
    )
    def test_values_of_another_form(self, held: str, given: str, dtypes: tuple[str, str]) -> None:
        """Arrays and `Bits` alike are converted to the caches' dtype; the same for `fill_ring`."""
        forms = {"array": jnp.asarray, "bits": as_bits}
        own, other = map(jnp.dtype, dtypes)
        caches = [forms[held](jnp.zeros(shape, own)) for shape in ((2, 1, 2, 4), (2, 1, 4, 2))]
        new = [forms[given](jnp.full(shape, 1.5, other)) for shape in ((1, 1, 2, 3), (1, 1, 3, 2))]
        for after, cache, axis in zip(insert(*caches, 1, *new), caches, (-1, -2), strict=True):
            self._assert_holds(after, cache, own, axis)
        for cache, columns, axis in zip(caches, new, (-1, -2), strict=True):
            columns = jax.tree.map(lambda one: jnp.concatenate([one, one]), columns)
            after = fill_ring(cache, columns, jnp.asarray([0, 3]), axis)
            self._assert_holds(after, cache, own, axis)

    def _assert_holds(self, after: Any, cache: Any, dtype: Any, slot_axis: int) -> None:
        """1.5 in the first three slots of the second row."""
        self.assertIs(type(after), type(cache))
        values = without_bits(after)
        self.assertEqual((after.dtype, values.dtype), (dtype, dtype))
        by_slot = np.moveaxis(np.asarray(values, np.float32), slot_axis, 1)
        np.testing.assert_array_equal(by_slot[1, :3], 1.5)
        np.testing.assert_array_equal(by_slot[1, 3], 0)
        np.testing.assert_array_equal(by_slot[0], 0)

    @parameterized.parameters(
        ("float8_e4m3fn", "float32"), ("float8_e4m3", "float8_e4m3fn"), ("bfloat16", "float8_e4m3")
    )
    def test_float8_has_scales(self, own: str, other: str) -> None:
        for form in (jnp.asarray, as_bits):
            cache = form(jnp.zeros((2, 1, 4, 4), own))
            new = jnp.ones((1, 1, 4, 4), other)
            with self.assertRaisesRegex(TypeError, f"^K_new: expected dtype {own}.*, got {other}$"):
                insert(cache, cache, 0, new, new)
            with self.assertRaisesRegex(
                TypeError, f"^columns: expected dtype {own}.*, got {other}"
            ):
                fill_ring(cache[:1], form(new), jnp.asarray([2]), -1)

    @parameterized.parameters(-1, 3, 7, 1.5, np.int64(3))
    def test_no_such_row(self, row: Any) -> None:
        old = [jnp.zeros((3, 1, 4, 6))], [jnp.zeros((3, 1, 6, 4))]
        new = [jnp.ones((1, 1, 4, 2))], [jnp.ones((1, 1, 2, 4))]
        with self.assertRaisesRegex(
            ValueError, rf"^row: expected an integer in 0\.\.2, got {row}$"
        ):
            insert(*old, row, *new)
        for last in (2, np.int64(2), jnp.int32(2)):
            (got,), _ = insert(*old, last, *new)
            self.assertEqual(np.flatnonzero(got.any((1, 2, 3))).tolist(), [2])


class CompactTest(parameterized.TestCase):
    LENGTHS = (3, 9)
    KEPT = ((0, 2, 3), (1, 4, -1))

    @parameterized.product(
        slots=(16, 12), rings=(False, True), form=("lists", "stack", "bits", "mixed")
    )
    @pytest.mark.extended_except("0", "6", "9", "13", "15")
    def test_slot_by_slot(self, slots: int, rings: bool, form: str) -> None:
        """In caches of 12 slots, the second tree goes round in rings, and beyond the end else."""
        rng = np.random.default_rng(0)
        K = rng.standard_normal((2, 2, 3, 4, slots)).astype(np.float32)
        V = rng.standard_normal((2, 2, 3, slots, 4)).astype(np.float32)
        given = [jnp.asarray(K), jnp.asarray(V)]
        is_ring = [not rings, rings] if form == "mixed" else [rings] * 2
        if form in ("lists", "mixed"):
            given = [list(cache) for cache in given]
        if form == "bits":
            given = [as_bits(cache.astype(jnp.bfloat16)) for cache in given]
        lengths, kept = jnp.asarray(self.LENGTHS), jnp.asarray(self.KEPT)
        options = {"rings": is_ring if form == "mixed" else rings}
        got = jax.jit(functools.partial(compact, **options))(*given, lengths, kept)
        want_K, want_V = K.copy(), V.copy()
        for b, (length, tokens) in enumerate(zip(self.LENGTHS, self.KEPT, strict=True)):
            for index, token in enumerate(t for t in tokens if t >= 0):
                for layer in range(2):
                    source, target = length + token, length + index
                    if is_ring[layer]:
                        source, target = source % slots, target % slots
                    if source < slots:
                        want_K[layer, b, ..., target] = K[layer, b, ..., source]
                        want_V[layer, b, :, target] = V[layer, b, :, source]
        for cache, want in zip(got, (want_K, want_V), strict=True):
            if form == "bits":
                cache, want = cache.values(), want.astype(jnp.bfloat16)
            np.testing.assert_array_equal(np.asarray(cache), want)

    def test_beyond_the_end_of_flat_caches(self) -> None:
        K, V = jnp.arange(8.0).reshape(1, 1, 1, 8), jnp.arange(8.0).reshape(1, 1, 8, 1)
        for kept in ([0, 1, 3], [0, 3, -1]):
            got = compact([K], [V], jnp.asarray([6]), jnp.asarray([kept]))
            np.testing.assert_array_equal(got[0][0], K)
            np.testing.assert_array_equal(got[1][0], V)

    def test_which_are_rings(self) -> None:
        K, V = jnp.zeros((1, 1, 2, 8)), jnp.zeros((1, 1, 8, 2))
        moves = jnp.asarray([6]), jnp.asarray([[0, 1]])
        with self.assertRaisesRegex(ValueError, r"rings: expected a bool, or one for each of 2"):
            compact([K, K], [V, V], *moves, rings=[True])
        with self.assertRaisesRegex(ValueError, "rings: expected a bool for caches in one stack"):
            compact(K[None], V[None], *moves, rings=[True])
        with self.assertRaisesRegex(ValueError, "rings: expected False with block_tables, got T"):
            compact([K], [V], *moves, jnp.zeros((1, 1), jnp.int32), rings=True)

    def test_arrays_and_bools_of_numpy(self) -> None:
        rng = np.random.default_rng(0)
        K, V = rng.random((2, 1, 1, 2, 8)), rng.random((2, 1, 1, 8, 2))
        moves = np.asarray([7]), np.asarray([[0, 2]])
        want = compact([*jnp.asarray(K)], [*jnp.asarray(V)], *moves, rings=[True, False])
        got = compact([*K], [*V], *moves, rings=np.asarray([True, False]))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        stacked = compact(K, V, *moves, rings=np.bool_(True))
        np.testing.assert_array_equal(stacked[0][0], want[0][0])

    def test_blocks(self) -> None:
        """A sequence's slots in blocks move as the same slots in a row do."""
        rng = np.random.default_rng(0)
        blocks, tables = 7, np.array([[5, 0, 3], [2, 6, 1]])
        K = rng.standard_normal((blocks, 3, 4, 5)).astype(np.float32)
        V = rng.standard_normal((blocks, 3, 5, 4)).astype(np.float32)
        flat_K = np.concatenate(K[tables.T], axis=-1)
        flat_V = np.concatenate(V[tables.T], axis=-2)
        lengths, kept = jnp.asarray(self.LENGTHS), jnp.asarray(self.KEPT)
        want = compact([jnp.asarray(flat_K)], [jnp.asarray(flat_V)], lengths, kept)
        (got_K,), (got_V,) = compact(
            [jnp.asarray(K)], [jnp.asarray(V)], lengths, kept, jnp.asarray(tables)
        )
        got_K, got_V = np.asarray(got_K), np.asarray(got_V)
        np.testing.assert_array_equal(np.concatenate(got_K[tables.T], axis=-1), want[0][0])
        np.testing.assert_array_equal(np.concatenate(got_V[tables.T], axis=-2), want[1][0])
        np.testing.assert_array_equal(got_K[4], K[4])


class ContextBucketTest(absltest.TestCase):
    def test_powers_of_two_up_to_the_capacity(self) -> None:
        got = [context_bucket(length, 1000) for length in (0, 128, 129, 513, 1000)]
        self.assertEqual(got, [SMALLEST_CONTEXT, 128, 256, 1000, 1000])


class RingTest(parameterized.TestCase):
    def test_capacity(self) -> None:
        self.assertEqual(
            [ring_capacity(w) for w in (1, 120, 121, 512, 4096)], [128] * 2 + [256, 640, 4224]
        )

    def test_slots(self) -> None:
        slots = ring_slots(jnp.asarray([[6, 7, 8], [15, 16, -1]]), 8)
        np.testing.assert_array_equal(slots, [[6, 7, 0], [7, 0, -1]])

    @parameterized.parameters((np.int8, 100), (np.uint8, 200), (np.int64, 2**31 - 1))
    def test_slots_of_any_dtype(self, dtype: Any, position: int) -> None:
        """Rings may have more slots than the dtype of positions holds."""
        slots = ring_slots(np.asarray([[position]], dtype), 700)
        np.testing.assert_array_equal(slots, [[position % 700]])
        self.assertEqual(slots.dtype, jnp.int32)

    def test_other_sizes(self) -> None:
        ring, lengths = jnp.zeros((2, 1, 4, 8)), jnp.asarray([3, 1])
        for shape in ((1, 1, 4, 3), (2, 1, 1, 3), (2, 4, 3)):
            with self.assertRaisesRegex(
                ValueError,
                rf"columns: expected shape \[2, 1, 4, T\], got {re.escape(str([*shape]))}",
            ):
                fill_ring(ring, jnp.ones(shape), lengths, -1)
        with self.assertRaisesRegex(ValueError, r"slot_axis: expected -1 .* or -2 .*, got 3"):
            fill_ring(ring, jnp.ones((2, 1, 4, 3)), lengths, 3)
        with self.assertRaisesRegex(ValueError, r"slot_axis: expected -1 .* or -2 .*, got -3"):
            share_out(ring, 2, -3)
        with self.assertRaisesRegex(ValueError, "context_parallel: expected at least 1, got 0"):
            share_out(ring, 0, -1)

    @parameterized.parameters("float32", "bfloat16")
    def test_fill(self, dtype: str) -> None:
        """Against tokens that are written one after the other, into lists and stacks."""
        rng = np.random.default_rng(0)
        lengths, S_max = (0, 5, 8, 19), 8
        ring = rng.random((2, 4, 1, 3, S_max)).astype(jnp.dtype(dtype))
        columns = rng.random((2, 4, 1, 3, 20)).astype(jnp.dtype(dtype))
        want = ring.copy()
        for b, length in enumerate(lengths):
            for position in range(length):
                want[:, b, ..., position % S_max] = columns[:, b, ..., position]
        got = fill_ring(jnp.asarray(ring), columns, jnp.asarray(lengths), -1)
        np.testing.assert_array_equal(got, want)
        turned = (array[0].swapaxes(-1, -2) for array in (ring, columns))
        held = fill_ring(*map(as_bits, turned), jnp.asarray(lengths), -2)
        held = held.values() if isinstance(held, Bits) else held
        np.testing.assert_array_equal(held, want[0].swapaxes(-1, -2))


if __name__ == "__main__":
    absltest.main()
