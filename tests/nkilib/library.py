"""AWS's nki-library, imported from a checkout that the environment variable NKILIB names.

Branch 2.29_release of aws-neuron/nki-library is what these tests were written against. Its kernels
run unmodified on the simulator, and its own PyTorch references judge them. Nothing of it is part of
this repository.
"""

import importlib
import os
import pathlib
import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jax_tkg import simulator

SOURCE = "src/nkilib_src/nkilib"

# AWS's own tolerance for bfloat16 is 2.5%; float32 discriminates far better.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2.5e-2}
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def require() -> None:
    """Skips the calling module unless there is a checkout, and makes it importable."""
    path = os.environ.get("NKILIB")
    if not path:
        pytest.skip(
            "NKILIB does not name a checkout of aws-neuron/nki-library", allow_module_level=True
        )
    pytest.importorskip("torch")
    root = pathlib.Path(path)
    if not (root / SOURCE).is_dir():
        raise FileNotFoundError(f"NKILIB={path}: there is no {SOURCE} in it")
    if not simulator.install():
        pytest.skip("the real nki package is present", allow_module_level=True)
    os.environ.setdefault("NKILIB_LOG_LEVEL", "ERROR")
    # Its references import helpers of its own tests: `test.integration`, whose name is also that
    # of a package of the standard library.
    for entry in (str(root), str(root / "src")):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    own_tests = sys.modules.get("test")
    if own_tests is not None and not str(own_tests.__file__).startswith(str(root)):
        del sys.modules["test"]
    sys.modules.setdefault("neuron_dtypes", _neuron_dtypes())


def _neuron_dtypes() -> types.ModuleType:
    """What the references need of AWS's package of that name, which is not on public indexes."""
    package = types.ModuleType("neuron_dtypes")
    package.static_cast = lambda array, dtype: array.astype(dtype)
    return package


def package_folder() -> pathlib.Path:
    """The folder of the library's package."""
    return pathlib.Path(os.environ["NKILIB"]) / SOURCE


def module(name: str) -> Any:
    """A module of the library: ``core.cumsum.cumsum``."""
    return importlib.import_module(f"nkilib_src.nkilib.{name}")


def to_torch(value: Any) -> Any:
    """PyTorch tensors of the same values, for the references; inside lists and dicts too."""
    import torch

    if isinstance(value, dict):
        return {key: to_torch(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_torch(v) for v in value)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biuf" or value.dtype == ml_dtypes.bfloat16:
        wide = torch.from_numpy(value.astype(np.float32))
        return wide.to(torch.bfloat16) if value.dtype == ml_dtypes.bfloat16 else wide
    if value.dtype == np.uint32:
        value = value.astype(np.int64)
    return torch.from_numpy(value.copy())


def to_numpy(value: Any) -> np.ndarray:
    """A float32 array of a PyTorch tensor."""
    import torch

    return value.to(torch.float32).numpy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference over that of what is expected."""
    difference = actual.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def assert_agrees(actual: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Checks shape, that not all is zero, and the error against the tolerance of the dtype."""
    expected = expected.reshape(actual.shape)
    assert np.any(actual.astype(np.float32) != 0), "all outputs are zero"
    error = relative_error(actual, expected)
    assert error <= TOLERANCE[dtype], f"relative error {error:.3g} exceeds {TOLERANCE[dtype]}"


def uniform(
    generator: np.random.Generator, shape: tuple, dtype: Any, low: float = -1, high: float = 1
) -> np.ndarray:
    """Uniform numbers."""
    return generator.uniform(low, high, shape).astype(np.float32).astype(dtype)


def normal(
    generator: np.random.Generator, shape: tuple, dtype: Any, deviation: float
) -> np.ndarray:
    """Normal numbers of mean 0."""
    return generator.normal(0.0, deviation, shape).astype(np.float32).astype(dtype)
