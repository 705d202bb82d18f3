"""The simulated machine: targets, ranks, cores, and which core the current thread is."""

import dataclasses
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_tkg.simulator import errors
from jax_tkg.simulator.machine.meeting import MeetingBoard
from jax_tkg.simulator.machine.record import Instruction, Record

if TYPE_CHECKING:
    from jax_tkg.simulator.memory.memory import Lifetime, Storage

PARTITIONS = 128
KIB = 1024
PSUM_BANKS = 8
PSUM_BANK_BYTES = 2 * KIB
PSUM_PARTITION_BYTES = PSUM_BANKS * PSUM_BANK_BYTES


@dataclasses.dataclass(frozen=True)
class Target:
    """One generation of hardware.

    Attributes:
      name: the instance family: trn1, trn2 or trn3.
      generation: the number in NeuronCore-v<number>.
      sbuf_partition_bytes: SBUF capacity of one partition. AWS's architecture guides: 192 KiB on
        NeuronCore-v2, 224 KiB on v3, 256 KiB on v4.
    """

    name: str
    generation: int
    sbuf_partition_bytes: int


TARGETS = {
    target.name: target
    for target in (
        Target("trn1", 2, 192 * KIB),
        Target("trn2", 3, 224 * KIB),
        Target("trn3", 4, 256 * KIB),
    )
}

# The names that NKI's NEURON_PLATFORM_TARGET_OVERRIDE accepts.
_TARGET_ALIASES = {"inf2": "trn1", "gen2": "trn1", "gen3": "trn2", "gen4": "trn3"}


def target_named(name: str | None) -> Target:
    """The target of a name; None means $NEURON_PLATFORM_TARGET_OVERRIDE or else trn2.

    Raises:
      ValueError: there is no such target.
    """
    chosen = name or os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE") or "trn2"
    target = TARGETS.get(_TARGET_ALIASES.get(chosen, chosen))
    if target is None:
        known = [*TARGETS, *_TARGET_ALIASES]
        raise ValueError(f"target {chosen!r} is unknown; expected one of {known}")
    return target


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run checks and keeps.

    Attributes:
      record: give the instruction stream back.
      uninitialized: what a read of never-written bytes does: "error", "report" (a finding in the
        result, the run goes on) or "ignore" (the bytes are not tracked at all).
      races: what unordered conflicting accesses of two cores do: "error", "report" or "ignore".
      ordering: what orders the two cores of a rank at a meeting: "program", all that stands before
        it, or "dependencies", only what it depends on, for the compiler may start the rest later.
      capacity: what tensors that do not fit in SBUF or PSUM do: "error", "report" or "ignore".

    A read of a tensor whose bytes another one at an overlapping address has overwritten counts as
    uninitialized.
    """

    record: bool = True
    uninitialized: str = "error"
    races: str = "error"
    capacity: str = "error"
    ordering: str = "program"

    def __post_init__(self) -> None:
        for field in ("uninitialized", "races", "capacity"):
            value = getattr(self, field)
            if value not in ("error", "report", "ignore"):
                raise ValueError(f"{field}={value!r}: expected 'error', 'report' or 'ignore'")
        if self.ordering not in ("program", "dependencies"):
            raise ValueError(f"ordering={self.ordering!r}: expected 'program' or 'dependencies'")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong that a run was asked to report, and not to stop at.

    Attributes:
      kind: "uninitialized", "race", "capacity", or "overflow" (finite values became infinity or
        NaN in a float8 format, which is never an error).
      message: what, where.
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
        self.lifetimes: list[Lifetime] = []
        self.placed: dict[str, weakref.WeakSet[Storage]] = {
            "sbuf": weakref.WeakSet(),
            "psum": weakref.WeakSet(),
        }
        self._memories: dict[str, np.ndarray] = {}
        self._occurrences: dict[Any, int] = {}
        self.scalar_accumulators = np.zeros(PARTITIONS, np.float32)
        self.vector_accumulators = np.zeros(PARTITIONS, np.float32)
        self.random = np.random.Generator(np.random.PCG64(0))

    @property
    def target(self) -> Target:
        """The hardware generation."""
        return self.machine.target

    def memory(self, space: str) -> np.ndarray:
        """The bytes of this core's SBUF or PSUM, [128 * bytes per partition], made on first use."""
        array = self._memories.get(space)
        if array is None:
            array = np.full(PARTITIONS * self.partition_bytes(space), 0xFF, np.uint8)
            self._memories[space] = array
        return array

    def partition_bytes(self, space: str) -> int:
        """Capacity of one partition of SBUF or PSUM."""
        if space == "psum":
            return PSUM_PARTITION_BYTES
        return self.target.sbuf_partition_bytes

    def occurrence(self, key: Any) -> int:
        """How often this core asked with this key before: 0, 1, 2, ..."""
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
        # The race detector works on the record, also when the caller does not want to keep it.
        self.keeps_record = options.record or (options.races != "ignore" and lnc > 1)
        self.cores = {(r, c): Core(self, r, c) for r in range(ranks) for c in range(lnc)}
        self.board = MeetingBoard(list(self.cores))
        self.shared: dict[Any, Any] = {}
        self.lock = threading.RLock()
        self.findings: list[Finding] = []
        self._storage_count = 0

    def next_storage(self) -> int:
        """A fresh number for an allocation."""
        with self.lock:
            self._storage_count += 1
            return self._storage_count

    def report(self, kind: str, message: str) -> None:
        """Keeps a finding, once."""
        finding = Finding(kind, message)
        with self.lock:
            if finding not in self.findings:
                self.findings.append(finding)

    def record(self) -> Record:
        """The instruction streams so far; empty if the caller wanted none."""
        keep = self.options.record
        streams = {key: core.instructions if keep else [] for key, core in self.cores.items()}
        return Record(self.target.name, self.lnc, self.ranks, streams)


_current = threading.local()


def current_core() -> Core:
    """The core whose program this thread executes.

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
    """The core whose program this thread executes, or None outside a kernel."""
    return getattr(_current, "core", None)


def set_current_core(core: Core | None) -> None:
    """Makes this thread execute the program of `core` (None: of no core)."""
    _current.core = core


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def caller() -> tuple[str, int]:
    """File and line of the innermost frame outside the simulator: the kernel's statement."""
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(_PACKAGE):
            return filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "<unknown>", 0


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
