"""What a run gave: statistics of its arrays, and a file of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jax_tkg.simulator.launch import Result
from jax_tkg.simulator.memory import dtypes


def arrays_of(result: Result) -> Iterator[tuple[int, str, Any]]:
    """(rank, name, value) of every output, and of every argument that the kernel wrote."""
    for rank, (output, mutated) in enumerate(zip(result.outputs, result.mutated, strict=True)):
        for name, value in _leaves(output, "output"):
            yield rank, name, value
        for name, value in mutated.items():
            yield rank, f"mutated.{name}", value


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    elif value is not None:
        yield name, value


def described(result: Result, values: bool) -> Iterator[str]:
    """A line for each array: shape, dtype, range, mean and standard deviation; then findings.

    Args:
      result: of a run.
      values: whether to show the elements too, shortened as NumPy does.
    """
    for rank, name, value in arrays_of(result):
        if not isinstance(value, np.ndarray):
            yield f"rank {rank} {name}: {value!r}"
            continue
        yield f"rank {rank} {name}: {value.dtype.name} {list(value.shape)}, {_statistics(value)}"
        if values:
            yield np.array2string(_plain(value))
    for finding in result.findings:
        yield f"finding, {finding.kind}: {finding.message}"


def _statistics(array: np.ndarray) -> str:
    plain = _plain(array).astype(np.float64)
    finite = plain[np.isfinite(plain)]
    odd = f", {plain.size - finite.size} not finite" if finite.size < plain.size else ""
    if not finite.size:
        return f"no finite element{odd}"
    return (
        f"min {np.min(finite):.6g}, max {np.max(finite):.6g}, mean {finite.mean():.6g}, "
        f"std {finite.std():.6g}{odd}"
    )


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that NumPy itself has: low-precision floats as float32, exactly."""
    own = array.dtype.kind in "biuf" and array.dtype.isbuiltin == 1
    return array if own else dtypes.to_float32(array)


def write(result: Result, path: str) -> None:
    """Writes the arrays to an .npz file under their names, with "rankN." before them where several
    ranks ran."""
    ranks = len(result.outputs)
    content: dict[str, Any] = {
        f"rank{rank}.{name}" if ranks > 1 else name: _plain(np.asarray(value))
        for rank, name, value in arrays_of(result)
    }
    with open(path, "wb") as file:
        np.savez(file, **content)
