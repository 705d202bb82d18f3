"""The simulated machine: ranks, cores, and the core of the current thread."""

import dataclasses
import threading
from typing import Any

import numpy as np

from jax_tkg.hardware import Target
from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.accumulators import Accumulators
from jax_tkg.simulator.machine.device_loops import DeviceLoops
from jax_tkg.simulator.machine.meeting import MeetingBoard
from jax_tkg.simulator.machine.record import Instruction, Record
from jax_tkg.simulator.machine.registers import RegisterWriters
from jax_tkg.simulator.memory.allocation import CoreMemory, RunMemory


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run checks and keeps.

    Attributes:
      record: whether to return the instruction stream.
      uninitialized: reads of bytes that were never written: "error", "report" (adds a finding to
        the result and goes on) or "ignore" (does not track the bytes). A read of bytes that a
        tensor at an overlapping address has overwritten counts as such a read.
      races: conflicting accesses of two cores that nothing orders: "error", "report" or "ignore".
      core_barriers: conflicting accesses of two cores without a core barrier between them, as
        under a kernel's `enable_core_barrier_checker()`: "error", "report" or "ignore".
      ordering: which earlier instructions a meeting of the two cores of a rank waits for:
        "program" (all of them) or "dependencies" (those that it depends on; the compiler may start
        the others later).
      capacity: tensors that do not fit in SBUF or PSUM: "error", "report" or "ignore".
    """

    record: bool = True
    uninitialized: str = "error"
    races: str = "error"
    capacity: str = "error"
    ordering: str = "program"
    core_barriers: str = "ignore"

    def __post_init__(self) -> None:
        for field in ("uninitialized", "races", "capacity", "core_barriers"):
            value = getattr(self, field)
            if value not in ("error", "report", "ignore"):
                raise ValueError(f"{field}={value!r}: expected 'error', 'report' or 'ignore'")
        if self.ordering not in ("program", "dependencies"):
            raise ValueError(f"ordering={self.ordering!r}: expected 'program' or 'dependencies'")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem that a run reports instead of stopping.

    Attributes:
      kind: "uninitialized", "race", "core_barrier" or "capacity"; or a kind that is never an error:
        "overflow" (finite values became infinity or NaN in a float8 format) or "device_loop" (a
        construct that one release of the compiler was reported to refuse in a loop).
      message: the problem and its source line.
    """

    kind: str
    message: str


class Core:
    """One physical NeuronCore: its memories, registers and program."""

    def __init__(self, machine: "Machine", rank: int, index: int):
        self.machine = machine
        self.rank = rank
        self.index = index
        self.instructions: list[Instruction] = []
        self.instruction_count = 0
        self.epoch = 0
        self.loops = DeviceLoops()
        self.register_writers = RegisterWriters()
        self.memory = CoreMemory(machine.memory, machine.target, rank, index)
        self._occurrences: dict[Any, int] = {}
        self.scalar_accumulators = Accumulators()
        self.vector_accumulators = Accumulators()
        self.random = np.random.Generator(np.random.PCG64(0))

    @property
    def target(self) -> Target:
        """The hardware generation."""
        return self.machine.target

    def occurrence(self, key: Any) -> int:
        """Returns the number of earlier calls of this core with this key: 0, 1, 2, ..."""
        count = self._occurrences.get(key, 0)
        self._occurrences[key] = count + 1
        return count

    def __repr__(self) -> str:
        return f"rank {self.rank} core {self.index}"


class Machine:
    """All ranks of one run."""

    def __init__(
        self, target: Target, ranks: int, lnc: int, options: Options, grid: bool | None = None
    ):
        if lnc not in (1, 2):
            raise ValueError(f"lnc={lnc}: a logical core has 1 or 2 physical cores")
        if lnc == 2 and target.generation < 3:
            raise ValueError(f"lnc=2 needs NeuronCore-v3 or newer, but the target is {target.name}")
        self.target = target
        self.ranks = ranks
        self.lnc = lnc
        # A grid of one core has no dimension, as AWS's kernels expect of LNC=1.
        self.grid_ndim = int(lnc > 1) if grid is None else int(grid)
        self.options = options
        # What is checked between cores is found in the record, also if the caller wants none.
        checks = (options.races, options.core_barriers)
        self.keeps_record = options.record or (lnc > 1 and checks != ("ignore", "ignore"))
        self.memory = RunMemory(lnc, options.uninitialized != "ignore")
        self.cores = {(r, c): Core(self, r, c) for r in range(ranks) for c in range(lnc)}
        self.board = MeetingBoard(list(self.cores))
        self._lock = threading.Lock()
        self.findings: list[Finding] = []

    def report(self, kind: str, message: str) -> None:
        """Adds a finding, unless it is known already."""
        finding = Finding(kind, message)
        with self._lock:
            if finding not in self.findings:
                self.findings.append(finding)

    def record(self) -> Record:
        """Returns the instruction streams so far; empty ones if the options ask for no record."""
        keep = self.options.record
        streams = {key: core.instructions if keep else [] for key, core in self.cores.items()}
        return Record(self.target.name, self.lnc, self.ranks, streams)


_current = threading.local()


def current_core() -> Core:
    """Returns the core whose program this thread executes.

    Raises:
      RuntimeError: no kernel is running in this thread.
    """
    core = getattr(_current, "core", None)
    if core is None:
        raise RuntimeError(
            "no simulated kernel is running in this thread: call the kernel through "
            "nki.simulate(kernel)(...) or jax_tkg.simulator.run(kernel, ...)"
        )
    return core


def running_core() -> Core | None:
    """Returns the core whose program this thread executes, or None outside a kernel."""
    return getattr(_current, "core", None)


def set_current_core(core: Core | None) -> None:
    """Sets the core whose program this thread executes; None: no core."""
    _current.core = core


def require_generation(core: Core, generation: int, what: str) -> None:
    """Checks that the target has a feature.

    Raises:
      NkiValidationError: the target is older.
    """
    if core.target.generation < generation:
        raise errors.NkiValidationError(
            f"{what} needs NeuronCore-v{generation} or newer, but the target {core.target.name} "
            f"is NeuronCore-v{core.target.generation}"
        )
