"""Drawn inputs of the stages, and how their results are compared."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import hypothesis
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jax_tkg.cpu.transformer import STAGES
from jax_tkg.reference.stages import PLAIN
from tests.stages.kernel_stages import KernelStages
from tests.stages.reference_stages import ReferenceStages

IMPLEMENTATIONS: dict[str, Any] = {
    "reference": ReferenceStages(PLAIN),
    "cpu": ReferenceStages(STAGES),
    "kernel": KernelStages(1),
    "kernel_two_cores": KernelStages(2),
}

ONE_FORMULATION = tuple(name for name in IMPLEMENTATIONS if name != "cpu")
"""For stages that "cpu" takes from the reference."""

KERNELS = ("kernel", "kernel_two_cores")

DTYPES = ("float32", "bfloat16")
TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 0.02}
"""Largest error of a result over the largest magnitude of the right one, by the inputs' dtype."""


def examples(name: str, count: int) -> Callable[[Callable[[st.DataObject], None]], None]:
    """Runs the decorated function on `count` draws that are the same in each run."""

    def decorate(run: Callable[[st.DataObject], None]) -> None:
        given = hypothesis.given(data=st.data())(run)
        # Without shrinking, which takes minutes where each draw compiles or simulates.
        phases = (hypothesis.Phase.generate,)
        settings = hypothesis.settings(max_examples=count, phases=phases)(given)
        hypothesis.seed(zlib.crc32(name.encode()))(settings)()

    return decorate


def tokens(data: st.DataObject, most: int = 64) -> tuple[int, int]:
    """B and S with B * S <= most, single ones among them."""
    S = data.draw(st.integers(1, 8))
    return data.draw(st.integers(1, max(1, most // S))), S


def head_size(data: st.DataObject) -> int:
    """d: any, usual ones among them; half of them in two chunks of the partitions."""
    usual = st.sampled_from((64, 80, 128, 160, 192, 256))
    return data.draw(st.one_of(usual, st.integers(1, 128).map(lambda half: 2 * half)))


def chunks(data: st.DataObject, most: int = 5) -> int:
    """A multiple of 128; odd numbers of chunks do not divide between two cores."""
    return 128 * data.draw(st.integers(1, most))


def generator(data: st.DataObject) -> np.random.Generator:
    return np.random.default_rng(data.draw(st.integers(0, 1 << 30)))


def uniform(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.uniform(-1, 1, shape).astype(np.float32).astype(jnp.dtype(dtype))


def kind(dtype: str) -> np.dtype:
    return np.dtype(jnp.dtype(dtype))


def wide(array: Any) -> np.ndarray:
    """float64."""
    return np.asarray(array).astype(np.float32).astype(np.float64)


def assert_close(got: Any, want: np.ndarray, dtype: str) -> None:
    """Compares with the float64 result: the largest error with the largest magnitude."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert np.isfinite(got).all()
    limit = TOLERANCES[dtype] * max(np.abs(want).max(initial=0.0), 1e-30)
    np.testing.assert_array_less(np.abs(got - want).max(initial=0.0), limit)
