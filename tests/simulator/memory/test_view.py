"""What a debugger shows of a tensor."""

import numpy as np
from absl.testing import absltest

from jax_tkg.simulator import isa as nisa
from jax_tkg.simulator import language as nl
from tests.simulator import harness


class ShownTest(absltest.TestCase):
    def test_values_of_every_memory(self) -> None:
        values = np.arange(6, dtype=np.float32).reshape(2, 3)

        def body(x):
            tile = nl.load(x)
            product = nl.ndarray((2, 3), dtype=nl.float32, buffer=nl.psum, name="product")
            nisa.tensor_copy(product, tile)
            rounded = nl.ndarray((2, 3), dtype=nl.bfloat16, buffer=nl.sbuf)
            nisa.tensor_copy(rounded, tile)
            for tensor in (x, tile, product, rounded, tile[:, 0:3]):
                np.testing.assert_array_equal(np.asarray(tensor).astype(np.float32), values)
                self.assertIn("\n [[0. 1. 2.]\n  [3. 4. 5.]]>", repr(tensor))
                self.assertEqual(str(tensor), repr(tensor))
            self.assertStartsWith(repr(product), "<psum tensor 'product' [2, 3] float32\n")
            self.assertEqual(np.asarray(tile, np.int32).dtype, np.int32)
            # A copy: what a debugger does with it does not change the kernel's tensor.
            np.asarray(tile)[:] = 9
            np.testing.assert_array_equal(np.asarray(tile), values)
            with self.assertRaisesRegex(TypeError, "ufunc|unsupported operand"):
                np.float32(2) * tile
            with self.assertRaises(TypeError):
                np.exp(tile)

        harness.run(body, values)

    def test_what_was_never_written(self) -> None:
        def body():
            tile = nl.ndarray((4, 100), dtype=nl.int32, buffer=nl.sbuf)
            self.assertStartsWith(
                repr(tile), "<sbuf tensor [4, 100] int32, 400 of 400 elements never written\n"
            )
            nisa.memset(tile[:, 0:50], 7)
            self.assertIn("200 of 400 elements never written", repr(tile))
            self.assertNotIn("never", repr(tile[:, 0:50]))
            self.assertEqual(tile.label, "<sbuf tensor [4, 100] int32>")

        harness.run(body)

    def test_an_address_of_the_run(self) -> None:
        def body(x):
            chosen = x.select(0, nisa.register_alloc(1))
            self.assertIn("at a run-time address", repr(chosen))

        harness.run(body, np.zeros((3, 4), np.float32))

    def test_long_arrays_are_shortened(self) -> None:
        def body():
            self.assertLess(len(repr(harness.tile(128, 512))), 1000)

        harness.run(body)


if __name__ == "__main__":
    absltest.main()
