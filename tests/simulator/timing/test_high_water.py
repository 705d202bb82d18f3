"""Most memory that is alive at once, of streams made by hand."""

from absl.testing import absltest

from jax_tkg.simulator.timing.high_water import high_water
from tests.simulator.streams import Stream, access


class HighWaterTest(absltest.TestCase):
    def test_lives(self):
        stream = Stream()
        stream.vector(2, 1)  # 1 and 2: 3840 bytes
        stream.vector(3, 2)  # 1 is dead; 2 and 3
        stream.vector(4, 2, 100)
        found = high_water(stream.instructions, "sbuf")
        self.assertEqual(found.partition_bytes, 3840)
        self.assertIs(found.instruction, stream.instructions[0])
        self.assertEqual(high_water(stream.instructions, "psum").partition_bytes, 0)

    def test_addresses_may_overlap(self):
        stream = Stream()
        for storage, address in ((1, 0), (2, 8), (3, 100)):
            stream.add(
                "vector", "memset", access("dst", "sbuf", storage, (128, 4), address=address)
            )
        stream.add(
            "vector",
            "memset",
            *(
                access("dst", "sbuf", storage, (128, 4), address=address)
                for storage, address in ((1, 0), (2, 8), (3, 100))
            ),
        )
        # [0, 16), [8, 24) and [100, 116)
        self.assertEqual(high_water(stream.instructions, "sbuf").partition_bytes, 40)


if __name__ == "__main__":
    absltest.main()
