"""MXFP4 weights in folders of safetensors: four-bit numbers in blocks of 32 with a scale each.

The weight NAME is stored as NAME_blocks, two numbers a byte, and NAME_scales, as OCP's Microscaling
Formats Specification 1.0 defines them. Weights are multiplied out when they are loaded.
"""

from __future__ import annotations

import numpy as np

BLOCKS, SCALES = "_blocks", "_scales"
"""What follows a weight's name in those of its two tensors."""

DTYPE = "U8"
"""Their dtype in safetensors files."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-value for value in _MAGNITUDES)], np.float32)
"""The numbers of format E2M1 by their bits."""

_EXPONENT_BIAS = 127
"""Of scales, which are powers of two in format E8M0."""


def is_shape(blocks: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    """Whether shapes are those of a weight's two tensors, as `multiplied` takes them."""
    return len(blocks) == 4 and blocks[3] == 16 and blocks[:3] == scales


def multiplied(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The weights [experts, in, out] float32.

    Args:
      blocks: [experts, out, in / 32, 16] uint8; the lower half of a byte comes first.
      scales: [experts, out, in / 32] uint8. 255, which is NaN, becomes infinity.
    """
    numbers = np.stack([_VALUES[blocks & 0xF], _VALUES[blocks >> 4]], axis=-1)
    experts, out, count, _ = blocks.shape
    exponents = scales.astype(np.int32)[..., np.newaxis] - _EXPONENT_BIAS
    values = np.ldexp(numbers.reshape(experts, out, count, -1), exponents)
    return values.reshape(experts, out, -1).swapaxes(1, 2)
