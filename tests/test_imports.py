"""The order of the package's rooms: imports run downwards, and nowhere in a circle.

All imports count, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import graphlib
import sys

import pytest
from absl.testing import absltest

from scripts.package_imports import imported, is_inside, modules

# Lowest first: a module imports its own room and those above it in this list. A room is a module
# or a folder; where parts of a folder have lines of their own, its line is its __init__ alone.
ROOMS = (
    "jax_tkg.errors",
    "jax_tkg.command_line",
    "jax_tkg.hardware",
    "jax_tkg.limits",
    "jax_tkg.user_cache",
    "jax_tkg.installed_nki",
    "jax_tkg.kernels",
    # The simulator, which needs no JAX.
    "jax_tkg.simulator.errors",
    "jax_tkg.simulator.caller",
    "jax_tkg.simulator.memory",
    "jax_tkg.simulator.machine",
    "jax_tkg.simulator.isa",
    "jax_tkg.simulator.language",
    "jax_tkg.simulator.collectives",
    "jax_tkg.simulator.ordering",
    "jax_tkg.simulator.timing",
    "jax_tkg.simulator.source_check",
    "jax_tkg.simulator.messages",
    "jax_tkg.simulator.launch",
    "jax_tkg.simulator.install",
    "jax_tkg.simulator.kernel_name",
    "jax_tkg.simulator.check_language",
    "jax_tkg.simulator.commands",
    "jax_tkg.simulator.__main__",
    "jax_tkg.simulator",
    # One call as data, and the public helpers.
    "jax_tkg.bits",
    "jax_tkg.call",
    "jax_tkg.masks",
    "jax_tkg.caches",
    "jax_tkg.rope",
    "jax_tkg.kinds",
    "jax_tkg.weights",
    "jax_tkg.quantize",
    "jax_tkg.sharding",
    # The operation, and what computes it.
    "jax_tkg.reference",
    "jax_tkg.cpu",
    "jax_tkg.prefill",
    "jax_tkg.output_head",
    "jax_tkg.lowering",
    "jax_tkg.api",
    # What is built on the operation.
    "jax_tkg.models",
    "jax_tkg.serving",
    "jax_tkg.fetch_model",
    "jax_tkg.profile",
    "jax_tkg.generate",
    "jax_tkg.doctor",
    "jax_tkg.console",
    "jax_tkg.__main__",
    "jax_tkg",
)

# What a room may import from outside of the package, where that is restricted.
OUTSIDE = {
    "jax_tkg.hardware": sys.stdlib_module_names,
    "jax_tkg.installed_nki": sys.stdlib_module_names,
    "jax_tkg.kernels": {"nki"},
    # PyTorch's tensors are taken as arguments where the caller has it.
    "jax_tkg.simulator": {*sys.stdlib_module_names, "numpy", "ml_dtypes", "threadpoolctl", "torch"},
    # Pictures, where matplotlib is installed.
    "jax_tkg.simulator.timing.timeline_plot": {*sys.stdlib_module_names, "matplotlib"},
    "jax_tkg": sys.stdlib_module_names,
}

# Imports that run upwards today, each to be mended: (importer, imported).
EXCEPTIONS: set[tuple[str, str]] = set()


def _room(module: str) -> str:
    """The room of a module: its longest prefix among the rooms."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        candidate = ".".join(parts[:count])
        if candidate not in ROOMS:
            continue
        is_divided = any(room.startswith(f"{candidate}.") for room in ROOMS)
        if candidate == module or not is_divided:
            return candidate
    raise AssertionError(f"{module} is in no room: add it to ROOMS")


def _upward_imports() -> set[tuple[str, str]]:
    height = {room: index for index, room in enumerate(ROOMS)}
    return {
        (module, other)
        for module in modules()
        for other in imported(module)
        if is_inside(other) and height[_room(other)] > height[_room(module)]
    }


@pytest.mark.thorough
class ImportsTest(absltest.TestCase):
    def test_every_room_exists(self) -> None:
        self.assertEqual([room for room in ROOMS if room not in modules()], [])

    def test_imports_run_downwards(self) -> None:
        self.assertEqual(sorted(_upward_imports() - EXCEPTIONS), [])

    def test_every_exception_is_needed(self) -> None:
        self.assertEqual(sorted(EXCEPTIONS - _upward_imports()), [])

    def test_no_circles(self) -> None:
        graph = {
            module: {
                other
                for other in imported(module)
                if is_inside(other) and (module, other) not in EXCEPTIONS
            }
            for module in modules()
        }
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            self.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")

    def test_imports_from_outside(self) -> None:
        found = []
        for module in modules():
            limits = [room for room in OUTSIDE if room == module or module.startswith(f"{room}.")]
            room = max(limits, key=len)
            if room == "jax_tkg" and module != room:
                continue
            found += [
                f"{module} imports {other}"
                for other in imported(module)
                if not is_inside(other) and other not in OUTSIDE[room]
            ]
        self.assertEqual(found, [])

    def test_kernels_import_no_other_room(self) -> None:
        found = [
            f"{module} imports {other}"
            for module in modules()
            if _room(module) == "jax_tkg.kernels"
            for other in imported(module)
            if is_inside(other) and _room(other) != "jax_tkg.kernels"
        ]
        self.assertEqual(found, [])


if __name__ == "__main__":
    absltest.main()
