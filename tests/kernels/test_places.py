"""Bytes that vectors, keys and values have to themselves, in small kernels of the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg import simulator

simulator.install()

import nki.isa as nisa  # noqa: E402
import nki.language as nl  # noqa: E402

from jax_tkg.kernels.places import Places, launch_places  # noqa: E402


def _filled(tile: Any, value: float) -> Any:
    nisa.memset(dst=tile, value=value)
    return tile


def _run(kernel: Any) -> list[np.ndarray]:
    options = simulator.Options(record=False)
    (outputs,) = simulator.run(kernel, [{}], target="trn2", options=options).outputs
    return outputs


def _stored(tiles: list[Any]) -> tuple[Any, ...]:
    outputs = []
    for tile in tiles:
        out = nl.ndarray(tile.shape, dtype=tile.dtype, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=tile)
        outputs.append(out)
    return tuple(outputs)


class PlacesTest(parameterized.TestCase):
    def test_tensors_of_a_layer_are_apart(self):
        """Of several dtypes, whose elements begin at multiples of four bytes."""

        def kernel() -> Any:
            places = Places(64, 1)
            sizes = (
                (3, 5, nl.bfloat16),
                (128, 4, nl.float32),
                (1, 3, nl.uint8),
                (2, 2, nl.float32),
            )
            tiles = [places.take(*size) for size in sizes]
            for number in range(len(tiles)):
                _filled(tiles[number], number + 1)
            return _stored(tiles)

        for number, tile in enumerate(_run(kernel)):
            np.testing.assert_array_equal(tile.astype(np.float32), number + 1)

    @parameterized.parameters(1, 2, 3)
    def test_the_bytes_are_those_of_some_layers_before(self, turns: int):
        """What a layer wrote is there until as many layers have begun."""

        def kernel() -> Any:
            places = Places(16, turns)
            tiles = []
            for layer in range(4):
                places.restart()
                tiles.append(_filled(places.take(2, 4, nl.float32), layer))
            return _stored(tiles)

        found = [int(tile[0, 0]) for tile in _run(kernel)]
        # Layers that share their bytes hold what the last of them wrote.
        same = [[other for other in range(4) if (other - layer) % turns == 0] for layer in range(4)]
        self.assertEqual(found, [max(layers) for layers in same])

    def test_what_does_not_fit_is_the_compilers(self):
        def kernel() -> Any:
            places = Places(16, 1)
            tiles = [places.take(1, 3, nl.float32), places.take(1, 2, nl.float32)]
            tiles += [Places(0, 2).take(1, 2, nl.float32), places.take(1, 1, nl.float32)]
            for number in range(4):
                _filled(tiles[number], number)
            return _stored(tiles)

        for number, tile in enumerate(_run(kernel)):
            np.testing.assert_array_equal(tile, number)

    @parameterized.parameters(0, 4, 20, 3000, 28672)
    def test_all_bytes_are_given(self, row_bytes: int):
        """At most so many, in multiples of four, two fifths of them for what two layers store."""

        def kernel() -> Any:
            loaded, stored = launch_places(row_bytes)
            self.assertEqual((loaded.turns, stored.turns), (1, 2))
            self.assertEqual(loaded.row_bytes + 2 * stored.row_bytes, row_bytes)
            self.assertEqual(stored.row_bytes % 4, 0)
            self.assertBetween(stored.row_bytes, row_bytes / 5 - 4, row_bytes / 5)
            return _stored([_filled(loaded.take(1, 1, nl.float32), 1)])

        _run(kernel)


if __name__ == "__main__":
    absltest.main()
