"""Float8 values decoded from their bits with integer and f16 arithmetic, exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

FACTORS = {"float8_e4m3": 256.0, "float8_e4m3fn": 256.0, "float8_e5m2": 1.0}
"""By dtype: multiply `decode`'s result by this power of two to get the true value.

An e4m3 number with its exponent put into f16's field is 2**-8 of its value, because the exponents'
biases are 7 and 15. Those who decode multiply something smaller than the weight.
"""

_INFINITY = 0x7C00
_NAN = 0x7E00


def decode(bits: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The f32 values of float8 numbers over `FACTORS[dtype]`.

    XLA:CPU converts float8 by way of tables and branches; f16 to f32 is one instruction, which
    takes subnormal numbers as they are whatever the processor is told about f32's.

    Args:
      bits: uint8, any shape.
      dtype: float8_e4m3, float8_e4m3fn or float8_e5m2.
    """
    name = np.dtype(dtype).name
    wide = bits.astype(jnp.uint16)
    if name == "float8_e5m2":
        half = wide << 8
    else:
        magnitude = wide & 0x7F
        half = magnitude << 7
        if name == "float8_e4m3fn":
            half = jnp.where(magnitude == 0x7F, jnp.uint16(_NAN), half)
        else:
            # The largest exponent is that of infinity (no mantissa) and of NaN.
            half = jnp.where(magnitude >= 0x78, half | jnp.uint16(_INFINITY), half)
        half = half | ((wide & 0x80) << 8)
    return jax.lax.bitcast_convert_type(half, jnp.float16).astype(jnp.float32)
