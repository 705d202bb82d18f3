"""Breaks the simulator in chosen ways and shows that its tests notice every time.

    python scripts/mutation_check.py [NAME ...]

Each mutation is a change of the source, made in a copy of the package in a temporary folder. The
tests must pass on the unchanged copy and fail on every changed one. Prints a table; the exit status
is 1 if a mutation survives, or no longer applies to the source.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "jax_tkg/simulator"
TESTS = "tests/simulator"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One way to break the simulator.

    Attributes:
      name: what is broken.
      file: in the simulator's package.
      old: text that occurs once in the file.
      new: its replacement.
      tests: the test file that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "activation drops its scale",
        "isa/scalar.py",
        "        values = values * factor\n",
        "        values = values\n",
        "isa/test_scalar.py",
    ),
    Mutation(
        "activation adds the bias after the function",
        "isa/scalar.py",
        "        values = values + _bias(step, bias, data)\n",
        "        values = values + 0 * _bias(step, bias, data)\n",
        "isa/test_scalar.py",
    ),
    Mutation(
        "reduction registers are never reset",
        "isa/scalar.py",
        "        lanes[:] = reduction.identity\n",
        "        lanes[:] = lanes\n",
        "isa/test_scalar.py",
    ),
    Mutation(
        "vector_offset is off by one",
        "isa/dma.py",
        "        self.rows = index[: tensor.shape[0]]\n",
        "        self.rows = index[: tensor.shape[0]] - 1\n",
        "isa/test_dma.py",
    ),
    Mutation(
        "scalar_offset ignores the stride of its dimension",
        "isa/operands.py",
        "int(index[0]) * indirection.stride * size",
        "int(index[0]) * size",
        "isa/test_dma.py",
    ),
    Mutation(
        "out-of-bounds rows are written in skip mode",
        "isa/dma.py",
        "        rows = self.rows[keep]\n        storage.prepare_write()\n",
        "        rows = np.clip(self.rows, 0, 3)\n        keep[:] = True\n"
        "        storage.prepare_write()\n",
        "isa/test_dma.py",
    ),
    Mutation(
        "matmul ignores accumulate",
        "isa/matmul.py",
        "old.reshape(product.shape) + product, matmul=True",
        "product, matmul=True",
        "isa/test_matmul.py",
    ),
    Mutation(
        "matmul always accumulates",
        "isa/matmul.py",
        "    if accumulate is False:\n        step.write",
        "    if accumulate is False and not any_started:\n        step.write",
        "isa/test_matmul.py",
    ),
    Mutation(
        "matmul transposes nothing",
        "isa/matmul.py",
        "        product = left.T @ right\n",
        "        product = left[: left.shape[1], :].T @ right[: left.shape[1]]\n",
        "isa/test_matmul.py",
    ),
    Mutation(
        "reversed operands are not reversed",
        "isa/arithmetic.py",
        "op.apply(right, left) if reverse else op.apply(left, right)",
        "op.apply(left, right)",
        "isa/test_vector.py",
    ),
    Mutation(
        "tensor_reduce drops negate",
        "isa/vector.py",
        "-result if negate else result",
        "result",
        "isa/test_vector.py",
    ),
    Mutation(
        "nc_stream_shuffle ignores quadrants",
        "isa/vector.py",
        "        wanted = sources[moved] + start\n",
        "        wanted = sources[moved]\n",
        "isa/test_vector.py",
    ),
    Mutation(
        "integers are truncated, not rounded",
        "memory/dtypes.py",
        "np.rint(values.astype(np.float64))",
        "np.trunc(values.astype(np.float64))",
        "memory/test_dtypes.py",
    ),
    Mutation(
        "iota forgets the channel multiplier",
        "isa/gpsimd.py",
        "np.arange(tensor.shape[0])[:, None] * int(multiplier)",
        "np.arange(tensor.shape[0])[:, None] * 0",
        "isa/test_gpsimd.py",
    ),
    Mutation(
        "ap ignores its offset",
        "memory/tensor.py",
        "start = base + (0 if offset is None else int(offset))",
        "start = base",
        "memory/test_tensor.py",
    ),
    Mutation(
        "slices ignore their step",
        "memory/tensor.py",
        "            strides.append(stride * step)\n",
        "            strides.append(stride)\n",
        "memory/test_tensor.py",
    ),
    Mutation(
        "writes do not clear overlapping tensors",
        "memory/storage.py",
        "                theirs[mine != 0] = 0\n",
        "                theirs[mine != 0] = theirs[mine != 0]\n",
        "memory/test_storage.py",
    ),
    Mutation(
        "only wholly unwritten reads are found",
        "isa/operands.py",
        "            if written.min() != _ALL_WRITTEN[info.itemsize]:\n",
        "            if written.max() != _ALL_WRITTEN[info.itemsize]:\n",
        "memory/test_storage.py",
    ),
    Mutation(
        "all_reduce leaves out the last rank",
        "collectives/operations.py",
        "        for part in wide[1:]:\n",
        "        for part in wide[1:-1]:\n",
        "collectives/test_collectives.py",
    ),
    Mutation(
        "all_gather concatenates by rank number",
        "collectives/operations.py",
        "            np.concatenate([c.sources[i] for c in brought], axis=collective_dim)\n",
        "            np.concatenate(\n"
        "                [c.sources[i] for c in sorted(brought, key=lambda c: c.rank)],\n"
        "                axis=collective_dim,\n"
        "            )\n",
        "collectives/test_collectives.py",
    ),
    Mutation(
        "barriers order nothing",
        "isa/synchronization.py",
        '        "core_barrier",\n        _place(),\n    )\n    core.epoch += 1\n',
        '        "core_barrier",\n        _place(),\n    )\n',
        "ordering/test_races.py",
    ),
    Mutation(
        "dependencies end at a meeting",
        "ordering/dependencies.py",
        "            if partner is not None:\n",
        "            if partner is None:\n",
        "ordering/test_races.py",
    ),
    Mutation(
        "readers hold no writer back",
        "ordering/hazards.py",
        "            if is_write:\n                for (other, _), index",
        "            if False:\n                for (other, _), index",
        "ordering/test_races.py",
    ),
    Mutation(
        "races are seen between neighbouring rows",
        "ordering/shared_hbm.py",
        "    if start >= end:\n        return False\n",
        "    if start > end:\n        return False\n    return True\n",
        "ordering/test_races.py",
    ),
    Mutation(
        "tensors live for ever",
        "machine/capacity.py",
        "        while ends and ends[0][0] < life.first_use:\n",
        "        while ends and ends[0][0] < 0:\n",
        "machine/test_capacity.py",
    ),
)


def copy_project(folder: pathlib.Path) -> None:
    """Copies what the simulator's tests need."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "jax_tkg", folder / "jax_tkg", ignore=ignore)
    shutil.copytree(ROOT / TESTS, folder / TESTS, ignore=ignore)
    shutil.copy(ROOT / "tests" / "__init__.py", folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)


def tests_pass(folder: pathlib.Path, tests: str) -> bool:
    """Whether one test file passes on a copy of the project."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, f"{TESTS}/{tests}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode not in (0, 1):
        raise RuntimeError(f"pytest on {tests} could not run:\n{found.stdout}{found.stderr}")
    return found.returncode == 0


def survives(folder: pathlib.Path, mutation: Mutation) -> bool:
    """Whether the tests still pass with the mutation applied to the copy.

    Raises:
      ValueError: the text to replace does not occur exactly once.
    """
    path = folder / PACKAGE / mutation.file
    source = path.read_text()
    if source.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: the text to replace occurs {source.count(mutation.old)} times in "
            f"{mutation.file}, expected 1"
        )
    path.write_text(source.replace(mutation.old, mutation.new))
    try:
        return tests_pass(folder, mutation.tests)
    finally:
        path.write_text(source)


def main(names: list[str]) -> int:
    """Runs the named mutations, or all; returns the exit status."""
    chosen = [m for m in MUTATIONS if not names or m.name in names]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy_project(folder)
        for tests in sorted({m.tests for m in chosen}):
            if not tests_pass(folder, tests):
                print(f"{tests} fails on the unchanged source")
                return 1
        for mutation in chosen:
            start = time.monotonic()
            try:
                outcome = "SURVIVES" if survives(folder, mutation) else "killed"
            except ValueError as error:
                outcome = f"DOES NOT APPLY: {error}"
            failed += outcome != "killed"
            print(f"{outcome:9} {time.monotonic() - start:5.1f} s  {mutation.name}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} mutations killed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
