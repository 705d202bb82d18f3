"""A compiled kernel: what goes in, what comes out, and which inputs its results alias.

Compiling runs the kernel in the simulator on zeros, and notes what it returns. The program itself
is the function, which the simulator runs again on values.
"""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_tkg import simulator
from jax_tkg.hardware import target_named
from jax_tkg.simulator import collectives

ALIASED_INPUT_SUFFIX = ".must_alias_input"

_numbers = itertools.count()
_programs: dict[str, Program] = {}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor of a program's interface."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass
class Program:
    """A compiled kernel; see the module's documentation."""

    function: Callable[..., Any]
    parameters: tuple[str, ...]
    static: dict[str, Any]
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    aliases: dict[int, int]
    returns_tuple: bool
    has_collectives: bool
    mac_count: int
    lnc: int
    target: str
    ranks: int
    path: str

    def config(self) -> dict[str, Any]:
        """What frameworks write into the custom call."""
        aliased = {output: self.inputs[index].name for index, output in self.aliases.items()}
        return {
            "func_name": self.function.__name__,
            "platform_target": target_named(self.target).generation,
            "kernel_format": "bir",
            "kernel_version": 1,
            "klir_binary": {
                "binary": self.path,
                "input_names": [
                    spec.name + (ALIASED_INPUT_SUFFIX if index in self.aliases else "")
                    for index, spec in enumerate(self.inputs)
                ],
                "output_names": [
                    aliased.get(index, spec.name) for index, spec in enumerate(self.outputs)
                ],
                "version_identifier": "",
                "aliases": [list(pair) for pair in self.aliases.items()],
            },
            "grid": self.lnc,
            "has_collectives": self.has_collectives,
            "mac_count": self.mac_count,
        }

    def run(self, each_rank: list[list[np.ndarray]]) -> list[Any]:
        """What the kernel returns on every rank, given each rank's tensors in order."""
        result = simulator.run(
            self.function,
            [self._arguments(arrays) for arrays in each_rank],
            lnc=self.lnc,
            target=self.target,
            options=simulator.Options(record=False),
        )
        return result.outputs

    def _arguments(self, arrays: list[np.ndarray]) -> dict[str, Any]:
        tensors = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        return {name: {**tensors, **self.static}[name] for name in self.parameters}


def load(path: str) -> Program:
    """The program of a config's `binary`, which must still be there."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the kernel's file is gone: {path}")
    return _programs[path]


def compile_kernel(
    function: Callable[..., Any], arguments: dict[str, Any], lnc: int, target: str, ranks: int
) -> Program:
    """Compiles a function for arguments of these shapes and dtypes.

    Args:
      function: the kernel's.
      arguments: by name.
      lnc: cores per rank.
      target: the machine's name.
      ranks: how many run at once.
    """
    tensors = {name: value for name, value in arguments.items() if hasattr(value, "shape")}
    zeros = {name: np.zeros(value.shape, value.dtype) for name, value in tensors.items()}
    seen: list[tuple[Any, dict[int, int]]] = []

    def observed(**given: Any) -> Any:
        returned = function(**given)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        inputs = [given[name] for name in tensors]
        aliases = {
            index: output
            for output, value in enumerate(outputs)
            for index, tensor in enumerate(inputs)
            if value is tensor
        }
        seen.append((returned, aliases))
        return returned

    result = simulator.run(
        observed,
        [{**arguments, **zeros}] * ranks,
        lnc=lnc,
        target=target,
        # Where every index is zero, two cores may write to one place.
        options=simulator.Options(races="ignore"),
    )
    returned, aliases = seen[0]
    first = result.outputs[0]
    instructions = [one for (rank, _), s in result.record.streams.items() if rank == 0 for one in s]
    path = os.path.join(_folder(), f"{function.__name__}_{next(_numbers)}.json")
    program = Program(
        function=function,
        parameters=tuple(arguments),
        static={name: value for name, value in arguments.items() if name not in tensors},
        inputs=tuple(Spec(name, tuple(v.shape), v.dtype) for name, v in tensors.items()),
        outputs=tuple(
            Spec(f"output_{index}", value.shape, value.dtype)
            for index, value in enumerate(first if isinstance(first, tuple) else (first,))
        ),
        aliases=dict(sorted(aliases.items())),
        returns_tuple=isinstance(returned, tuple),
        has_collectives=any(hasattr(collectives, one.opcode) for one in instructions),
        mac_count=sum(_multiplications(one) for one in instructions),
        lnc=lnc,
        target=target,
        ranks=ranks,
        path=path,
    )
    with open(path, "w") as file:
        json.dump(program.config(), file)
    _programs[path] = program
    return program


def _multiplications(instruction: Any) -> int:
    if instruction.opcode != "nc_matmul":
        return 0
    shapes = {access.operand: access.shape for access in instruction.reads}
    rows, columns = shapes["stationary"][0], math.prod(shapes["stationary"][1:])
    return rows * columns * math.prod(shapes["moving"][1:])


def _folder() -> str:
    """Where programs lie as long as the process runs, or NKI_ARTIFACTS_DIR."""
    folder = os.environ.get("NKI_ARTIFACTS_DIR")
    if not folder:
        folder = tempfile.mkdtemp(prefix="nki_stand_in_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
