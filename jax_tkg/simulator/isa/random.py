"""Random numbers.

The simulator does not reproduce the hardware's generators. Equal seeds give equal numbers, with the
documented distribution.
"""

from typing import Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.isa.operands import NkiInstruction, Step
from jax_tkg.simulator.machine.machine import require_generation
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.memory.view import described

_INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32")


def rng(
    dst: NkiTensor, engine: Any = constants.engine.vector, name: str | None = None
) -> NkiInstruction:
    """32 random bits per element, truncated to the dtype."""
    step = Step("rng", "vector")
    chosen, given = step.check_engine(engine, ("vector", "gpsimd"), "vector")
    step.set_engine(chosen, given)
    step.check_compute(dst=dst)
    step.check_dtype(_INTEGERS, dst=dst)
    if chosen == "gpsimd":
        require_generation(step.core, 3, "rng on the GpSimd Engine")
        step.check_spaces(("sbuf",), dst=dst)
    bits = step.core.random.integers(0, 1 << 32, dst.shape, np.uint32)
    step.write_exact("dst", dst, bits.astype(dtypes.info(dst.dtype).storage))
    return step.done()


def set_rng_seed(src_seeds: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Seeds the generator with one 32-bit value."""
    step = Step("set_rng_seed", "vector")
    step.check_compute(src_seeds=src_seeds)
    if src_seeds.size != 1 or dtypes.info(src_seeds.dtype).itemsize != 4:
        step.fail(f"src_seeds must be a [1, 1] tensor of 32 bits, got {described(src_seeds)}")
    seed = int(step.read("src_seeds", src_seeds).view(np.uint32).reshape(-1)[0])
    step.core.random = np.random.Generator(np.random.PCG64(seed))
    return step.done()


def rand2(dst: NkiTensor, min: Any, max: Any, name: str | None = None) -> NkiInstruction:
    """Uniform random numbers in [min, max), on NeuronCore-v4."""
    step = Step("rand2", "vector")
    require_generation(step.core, 4, "rand2")
    step.check_compute(dst=dst)
    low, high = step.scalar("min", min, dst), step.scalar("max", max, dst)
    if np.any(np.asarray(low) >= np.asarray(high)):
        step.fail(f"min must be below max, got {low} and {high}")
    uniform = step.core.random.random((dst.shape[0], dst.size // dst.shape[0]), np.float32)
    step.write("dst", dst, low + uniform * (high - low))
    return step.done()


def dropout(dst: NkiTensor, data: NkiTensor, prob: Any, name: str | None = None) -> NkiInstruction:
    """Replaces elements with 0, each with the given probability."""
    step = Step("dropout", "vector")
    step.check_compute(dst=dst, data=data)
    step.check_same_elements(data=data, dst=dst)
    if dst.dtype != data.dtype:
        step.fail(f"dst must have the dtype of data, {data.dtype}, got {dst.dtype}")
    chance = step.scalar("prob", prob, data, float_only=False)
    values = step.read_rows("data", data)
    dropped = step.core.random.random(values.shape, np.float32) < chance
    step.write_exact("dst", dst, np.where(dropped, np.zeros((), values.dtype), values))
    return step.done()


def rand_set_state(*args: Any, **kwargs: Any) -> NkiInstruction:
    """The state of the XORWOW generator, which the simulator does not implement."""
    raise errors.NotSimulatedError("nki.isa.rand_set_state (the XORWOW state) is not simulated")


def rand_get_state(*args: Any, **kwargs: Any) -> NkiInstruction:
    """The state of the XORWOW generator, which the simulator does not implement."""
    raise errors.NotSimulatedError("nki.isa.rand_get_state (the XORWOW state) is not simulated")
