"""The loop over layers on the device: what its body may do with the kernel's inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from jax_tkg.kernels import layer_sequence, masks
from tests import cases
from tests.kernels import launch


@pytest.mark.thorough
class InputsTest(parameterized.TestCase):
    """A loop's body moves inputs by run-time addresses only: NCC_ISQI001 refuses static ones."""

    @parameterized.product(
        cores=(1, 2), masks_stay=(True, False), positions=("first", "each"), float8=(True, False)
    )
    @pytest.mark.extended_except("1", "2", "4", "7", "8", "11", "13", "14")
    def test_addresses(self, cores: int, masks_stay: bool, positions: str, float8: bool) -> None:
        shape = cases.Shape(
            L=3,
            S_ctx=300,
            S_max=320,
            positions=positions,
            quantized=(("float8_e4m3",) * 3,) * 3 if float8 else (),
        )
        # Each core is a thread.
        here = threading.local()
        moved: set[tuple[str, bool]] = set()
        copy: Callable[..., Any] = layer_sequence.nisa.dma_copy
        loop: Callable[..., Any] = layer_sequence.nl.fori_loop

        def watched_copy(dst: Any, src: Any, **options: Any) -> Any:
            if getattr(here, "inside", False):
                for tensor in (dst, src):
                    if tensor.buffer.value != "sbuf" and tensor.name:
                        moved.add((tensor.name, tensor.is_indirect()))
            return copy(dst=dst, src=src, **options)

        def watched_loop(*arguments: Any) -> None:
            here.inside = True
            loop(*arguments)
            here.inside = False

        room = 118000 if masks_stay else 0
        with (
            mock.patch.object(masks, "_mask_room", return_value=room),
            mock.patch.object(layer_sequence.nisa, "dma_copy", watched_copy),
            mock.patch.object(layer_sequence.nl, "fori_loop", watched_loop),
        ):
            launch.check(shape, cores=cores, stacked=True)
        self.assertContainsSubset({("W_qkvs", True), ("K_caches", True), ("W_downs", True)}, moved)
        self.assertEqual(("prior_mask", True) in moved, not masks_stay)
        self.assertEqual(("W_up_scales", True) in moved, float8)
        self.assertEqual({name for name, indirect in moved if not indirect}, set())


if __name__ == "__main__":
    absltest.main()
