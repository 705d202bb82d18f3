"""Limits of allocations: shapes and addresses that do not fit, and those that just do."""

from absl.testing import parameterized

from jax_tkg.simulator import language as nl
from tests.simulator import harness
from tests.simulator.harness import tile


def _sb(*shape, dtype="float32", name="", address=None):
    return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf, name=name, address=address)


class AllocationTest(parameterized.TestCase, harness.Rules):
    @parameterized.named_parameters(
        ("partitions", lambda: _sb(129, 4), "partition dimension 129 exceeds 128"),
        (
            "sbuf_partition",
            lambda: _sb(1, 224 * 1024 + 1, dtype="uint8"),
            "needs 229377 bytes per partition, but trn2 has 229376",
        ),
        (
            "sbuf_partition_of_trn1",
            lambda: _sb(1, 192 * 1024 + 1, dtype="uint8"),
            "but trn1 has 196608",
            "trn1",
        ),
        (
            "psum_partition",
            lambda: nl.ndarray((1, 4097), nl.float32, buffer=nl.psum),
            "needs 16388 bytes per partition, but trn2 has 16384",
        ),
        (
            "address_past_the_end",
            lambda: _sb(1, 8, address=(0, 224 * 1024 - 16)),
            "plus 32 bytes per partition exceeds the 229376 bytes of trn2",
        ),
        (
            "address_past_the_partitions",
            lambda: _sb(64, 8, address=(96, 0)),
            "plus 64 partitions exceeds the 128 partitions",
        ),
        (
            "psum_alignment",
            lambda: nl.ndarray((1, 1), nl.float32, buffer=nl.psum, address=(0, 2)),
            "byte address must be a multiple of 4",
        ),
        (
            "no_address_in_hbm",
            lambda: nl.ndarray((1, 1), nl.float32, buffer=nl.hbm, address=(0, 0)),
            "address is for SBUF and PSUM",
        ),
        ("sizes", lambda: _sb(4, 0), "each of 1 or more"),
    )
    def test_limit(self, body, message, target="trn2"):
        self.check_rule(body, message, target)

    @parameterized.parameters(("trn1", 192), ("trn2", 224), ("trn3", 256))
    def test_the_whole_of_sbuf_can_be_used(self, target, kib):
        harness.run(lambda: tile(128, 2, kib * 128, address=(0, 0)) and None, target=target)
