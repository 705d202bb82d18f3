"""Numbers of the hardware: they agree with each other, and with those that must stand twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import ml_dtypes
from absl.testing import absltest, parameterized

from jax_tkg import hardware
from jax_tkg.kernels import limits
from jax_tkg.simulator import language as nl
from jax_tkg.simulator.timing import costs


def _figures(value: object) -> Iterator[hardware.Figure]:
    for found in vars(value).values():
        if isinstance(found, hardware.Figure):
            yield found


class HardwareTest(parameterized.TestCase):
    def test_kernels(self) -> None:
        """They import nothing but nki, so they cannot read these."""
        self.assertEqual(limits.PARTITIONS, hardware.PARTITIONS)
        self.assertEqual(4 * limits.PSUM_BANK, hardware.PSUM_BANK_BYTES)
        self.assertLessEqual(2 * limits.PSUM_GROUP_BANKS, hardware.PSUM_BANKS)

    def test_kernels_against_nki(self) -> None:
        self.assertEqual(nl.tile_size.pmax, limits.PARTITIONS)
        self.assertEqual(nl.tile_size.psum_fmax, limits.PSUM_BANK)

    def test_sizes_that_the_documentation_gives_for_all_partitions(self) -> None:
        """28 MiB of SBUF and 2 MiB of PSUM on NeuronCore-v3; 24 and 32 MiB before and after."""
        mib = {
            target.generation: hardware.PARTITIONS * target.sbuf_partition_bytes >> 20
            for target in hardware.TARGETS.values()
        }
        self.assertEqual(mib, {2: 24, 3: 28, 4: 32})
        self.assertEqual(hardware.PARTITIONS * hardware.PSUM_PARTITION_BYTES, 2 << 20)
        self.assertEqual(hardware.MOVING_FMAX * 4, hardware.PSUM_BANK_BYTES)

    def test_aggregate_dma_bandwidth(self) -> None:
        """The bandwidth guide gives GB/s of all engines of a core."""
        found = {
            target.name: hardware.DMA_ENGINES * target.dma_bandwidth
            for target in hardware.TARGETS.values()
        }
        self.assertEqual(found, {"trn1": 272, "trn2": 368, "trn3": 528})
        self.assertEqual(
            hardware.DMA_ENGINES * hardware.PARTITIONS_PER_DMA_ENGINE, hardware.PARTITIONS
        )

    def test_dtypes_exist(self) -> None:
        for target in hardware.TARGETS.values():
            for name in target.float8_dtypes:
                self.assertTrue(hasattr(ml_dtypes, name), name)
                self.assertEqual(getattr(nl, name), name)

    def test_figures_have_sources(self) -> None:
        for target in hardware.TARGETS.values():
            for figure in _figures(target):
                self.assertGreater(figure, 0)
                self.assertIn(figure.unit, ("GHz", "bytes/ns"))
                self.assertTrue(figure.source)

    @parameterized.parameters("TRN1", "TRN2", "TRN3")
    def test_costs_have_the_same_rates(self, name: str) -> None:
        target, found = getattr(hardware, name), getattr(costs, name)
        self.assertEqual(found.target, target.name)
        for field in ("tensor_clock", "vector_clock", "scalar_clock", "gpsimd_clock"):
            self.assertIs(getattr(found, field), getattr(target, field))
        self.assertIs(found.dma_bandwidth, target.dma_bandwidth)
        self.assertIs(found.hbm_bandwidth, target.hbm_bandwidth)


class TargetNamedTest(parameterized.TestCase):
    @parameterized.parameters(
        ("trn1", "trn1"), ("inf2", "trn1"), ("gen2", "trn1"), ("gen3", "trn2"), ("gen4", "trn3")
    )
    def test_name(self, name: str, expected: str) -> None:
        self.assertEqual(hardware.target_named(name).name, expected)
        with mock.patch.dict(os.environ, {hardware.TARGET_VARIABLE: name}):
            self.assertEqual(hardware.target_named(None).name, expected)
            self.assertEqual(hardware.target_named("trn2").name, "trn2")

    def test_default(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop(hardware.TARGET_VARIABLE, None)
            self.assertIs(hardware.target_named(None), hardware.TRN2)

    def test_unknown(self) -> None:
        with self.assertRaisesRegex(ValueError, "target 'trn9' is unknown; expected one of"):
            hardware.target_named("trn9")


if __name__ == "__main__":
    absltest.main()
