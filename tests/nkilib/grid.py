"""AWS's own test grid for transformer_tkg on the simulator, as a table of error and time.

    NKILIB=path python -m tests.nkilib.grid [--tp 8 16] [--context 1024] [--memory-gib 12]

The cells are those of the generator in AWS's test: tensor-parallel degree 8, 16 and 32, global
batches of 8 to 128 over 64 / tp data-parallel groups, contexts of 1024, 10240 and 36864, with the
dimensions of Llama-3-70B at LNC 2, four layers of which the middle two have float8 weights. One
rank is simulated. Cells that need more memory than allowed are listed and left out. The error is
the relative L2 norm against AWS's PyTorch reference; the time is that of the simulation.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import sys
import time

import numpy as np

from jax_tkg import simulator
from tests.nkilib import cases, library

HIDDEN = 8192
INTERMEDIATE = 28672
QUERY_HEADS = 64
LAYERS = 4
RANKS_OF_ALL_GROUPS = 64
TENSOR_PARALLEL = (8, 16, 32)
GLOBAL_BATCHES = (8, 16, 32, 64, 128)
CONTEXTS = (1024, 10240, 36864)
GIB = 1 << 30

# (tp, batch, context) that AWS's test leaves out because they fail its accuracy check.
LEFT_OUT = {(32, 64, 1024), (16, 32, 1024), (32, 32, 1024)}


@dataclasses.dataclass
class Row:
    """One line of the table."""

    tp: int
    batch: int
    context: int
    error: float | None
    seconds: float | None
    instructions: int | None
    note: str


def sizes() -> list[tuple[int, cases.Size]]:
    """The cells of the grid."""
    found = []
    for tp in TENSOR_PARALLEL:
        for batch in GLOBAL_BATCHES:
            for context in CONTEXTS:
                local = batch // (RANKS_OF_ALL_GROUPS // tp)
                if (tp, local, context) in LEFT_OUT:
                    continue
                size = cases.Size(
                    B=local,
                    H=HIDDEN,
                    q=QUERY_HEADS // tp,
                    I=math.ceil(INTERMEDIATE // tp / 128) * 128,
                    S_ctx=context,
                    L=LAYERS,
                )
                found.append((tp, size))
    return found


def memory_bytes(size: cases.Size) -> int:
    """About what one cell needs: the arguments in bfloat16 and their float32 copies in PyTorch,
    and twice the updated caches."""
    weights = size.H * (size.q + 2) * size.d + size.q * size.d * size.H + 3 * size.H * size.I
    caches = 2 * size.B * size.d * size.S_ctx
    one_layer_wide = 3 * 4 * caches + 4 * weights
    return size.L * (2 * weights + 3 * 2 * caches) + one_layer_wide + 2 * size.L * 2 * caches


def measure(tp: int, size: cases.Size) -> Row:
    """Runs one cell."""
    kernel = library.module("experimental.transformer.transformer_tkg").transformer_tkg
    found = cases.arguments(size, library.DTYPES["bfloat16"], quantized=(1, 2))
    start = time.perf_counter()
    # The kernel prints statistics of its memory.
    with contextlib.redirect_stdout(io.StringIO()):
        result = simulator.run(
            kernel,
            [cases.kernel_arguments(found, size.L)],
            lnc=2,
            target="trn2",
            options=simulator.Options(races="report"),
        )
    seconds = time.perf_counter() - start
    output = result.outputs[0].astype(np.float32)
    instructions = len(result.record)
    races = sorted({f.message.split("'")[1] for f in result.findings if f.kind == "race"})
    note = f"races on {', '.join(races)}" if races else ""
    del result
    expected = cases.golden(found, size.L).reshape(output.shape)
    error = library.relative_error(output, expected)
    return Row(tp, size.B, size.S_ctx, error, seconds, instructions, note)


def main() -> int:
    """Prints the table and writes it as JSON; 1 if an error exceeds AWS's tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, nargs="*", default=TENSOR_PARALLEL)
    parser.add_argument("--context", type=int, nargs="*", default=CONTEXTS)
    parser.add_argument("--max-batch", type=int, default=RANKS_OF_ALL_GROUPS)
    parser.add_argument("--memory-gib", type=float, default=12.0)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    library.require()
    rows = []
    print(f"{'tp':>3} {'B':>3} {'S_ctx':>6} {'error':>8} {'time':>8} {'instructions':>12}")
    for tp, size in sizes():
        if tp not in options.tp or size.S_ctx not in options.context:
            continue
        if options.max_batch < size.B:
            continue
        needed = memory_bytes(size) / GIB
        if needed > options.memory_gib:
            row = Row(tp, size.B, size.S_ctx, None, None, None, f"needs {needed:.0f} GiB")
            print(f"{tp:3} {size.B:3} {size.S_ctx:6} {row.note:>30}", flush=True)
        else:
            row = measure(tp, size)
            print(
                f"{tp:3} {size.B:3} {size.S_ctx:6} {row.error:8.2%} {row.seconds:6.1f} s "
                f"{row.instructions:12} {row.note}",
                flush=True,
            )
        rows.append(row)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)
    tolerance = library.TOLERANCE["bfloat16"]
    return int(any(row.error is not None and row.error > tolerance for row in rows))


if __name__ == "__main__":
    sys.exit(main())
