"""NKI on a CPU: the documented API of AWS's Neuron Kernel Interface, executed with NumPy.

Run a kernel on NumPy arrays, on one or more ranks::

    from jax_tkg import simulator

    simulator.install()              # `import nki` finds the simulator, if the real one is absent
    import nki.language as nl, nki.isa as nisa

    def double(x):
        out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
        tile = nl.load(x)
        nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
        nisa.dma_copy(dst=out, src=tile)
        return out

    result = simulator.run(double, [{"x": x0}, {"x": x1}], lnc=2, target="trn2")
    result.outputs[1]                # what rank 1 returned
    result.mutated[1]                # {"cache": array}: the arguments that rank 1 wrote, by name
    result.record.streams[(1, 0)]    # the instructions of rank 1, core 0
    result.findings                  # problems found under Options(...="report")

`run` takes one entry per rank: a dict of keyword arguments, or a tuple of positional arguments.
Each rank runs `lnc` cores. All cores run at once, and exchange data at collectives and barriers.
The caller's arrays never change. ``Options`` selects what to keep (``record``, the instruction
stream) and what to check. For ``uninitialized`` reads, ``races`` between cores and ``capacity`` of
SBUF and PSUM it selects whether to raise an error ("error", the default), to add to `findings`
("report"), or not to check ("ignore"). ``ordering="dependencies"`` makes the race detector
stricter. ``core_barriers="error"`` demands a core barrier wherever AWS's checker does.

``nki.simulate(kernel)(...)`` runs one rank and updates arrays in place, as in NKI.
"""

from jax_tkg.simulator.errors import (
    CapacityError,
    MissingPeerError,
    NkiValidationError,
    NotSimulatedError,
    OutOfBoundsError,
    PeerMismatchError,
    RaceError,
    UninitializedReadError,
)
from jax_tkg.simulator.install import install, uninstall
from jax_tkg.simulator.launch import Kernel, Result, jit, run, simulate
from jax_tkg.simulator.machine.machine import Finding, Options
from jax_tkg.simulator.machine.record import Access, Instruction, Record

__all__ = [
    "Access",
    "CapacityError",
    "Finding",
    "Instruction",
    "Kernel",
    "MissingPeerError",
    "NkiValidationError",
    "NotSimulatedError",
    "Options",
    "OutOfBoundsError",
    "PeerMismatchError",
    "RaceError",
    "Record",
    "Result",
    "UninitializedReadError",
    "install",
    "jit",
    "run",
    "simulate",
    "uninstall",
]
