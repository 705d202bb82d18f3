"""One command run by several processes, each of which has a part of the tensor-parallel ranks.

Every process is started with the same flags but for its number, reads the whole model, and runs the
same program; only the first one writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from jax_tkg.command_line import CommandError, note
from jax_tkg.models.errors import one_line

JOIN_SECONDS = 50
"""How long a process waits for the others to join."""

HEARTBEAT_SECONDS = 20
"""After so many seconds without a sign of life a process counts as lost, and JAX ends the others.

Most often they notice before, because a sum over the ranks fails.
"""

SHUTDOWN_SECONDS = 30
"""How long a process that is done waits for the others to be done."""

_OWN = ("coordinator", "process_id", "model", "prompt", "compilation_cache")
"""Flags that may differ between processes; of prompts the tokens may not."""


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that make a command one of several processes."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT at which process 0 coordinates the others; with --num_processes and "
        "--process_id. The processes share the devices of --tensor_parallel evenly.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "Processes that run this command together.", flag_values=values
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Number of this process, from 0 on. Process 0 writes the answers.",
        flag_values=values,
    )


def count(values: flags.FlagValues) -> int:
    """Processes that run the command."""
    return values.num_processes or 1


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[None]:
    """Joins the other processes before JAX is used, and leaves them at the end.

    Processes but the first write nothing, except for errors.

    Raises:
      CommandError: a flag is wrong, the others cannot be reached, or one of them is lost.
    """
    if not _wanted(values):
        yield
        return
    # Otherwise it takes the signal SIGTERM for itself, and the process goes on.
    jax.config.update("jax_enable_preemption_service", False)
    # Where the platform is a CPU: how the processes' sums are computed.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX would end the process after its own timeout, with a stack trace.
    patience = threading.Timer(JOIN_SECONDS, _give_up, (values.coordinator, values.num_processes))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            values.coordinator,
            values.num_processes,
            values.process_id,
            cluster_detection_method="deactivate",
            initialization_timeout=2 * JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise CommandError(
            f"--coordinator: expected to start at {values.coordinator}, got {one_line(error)}"
        ) from error
    finally:
        patience.cancel()
    try:
        with _output(values.process_id == 0):
            yield
            jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
        raise CommandError(
            f"process {values.process_id} of {values.num_processes}: expected all processes to "
            f"stay until the end, got {one_line(error)}"
        ) from error


def _give_up(coordinator: str, processes: int) -> None:
    """Ends a process that has waited for the others in vain."""
    note(
        f"error: --coordinator: expected {processes} processes to meet at {coordinator} within "
        f"{JOIN_SECONDS} s, got fewer"
    )
    os._exit(1)


@contextlib.contextmanager
def _output(is_first: bool) -> Iterator[None]:
    """What the first process writes from Python is all that comes out.

    Gloo, in C++, writes to standard output how many processes it is connected to.
    """
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        if not is_first:
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        if sys.stdout is not None:
            sys.stdout.flush()
            descriptor, kept = sys.stdout.fileno(), os.dup(sys.stdout.fileno())
            encoding, errors = sys.stdout.encoding, sys.stdout.errors
            own = stack.enter_context(open(kept, "w", encoding=encoding, errors=errors))
            os.dup2(nowhere.fileno(), descriptor)
            stack.callback(os.dup2, kept, descriptor)
            written = own if is_first else nowhere
            stack.enter_context(contextlib.redirect_stdout(written))
        yield


def _wanted(values: flags.FlagValues) -> bool:
    """Whether there are several processes; checks their flags."""
    names = ("coordinator", "num_processes", "process_id")
    absent = [name for name in names if getattr(values, name) is None]
    if len(absent) == len(names):
        return False
    if absent:
        raise CommandError(f"--{absent[0]}: expected with {_others(names, absent)}, got none")
    _, colon, port = values.coordinator.rpartition(":")
    if not (colon and port.isdecimal()):
        raise CommandError(f"--coordinator: expected HOST:PORT, got {values.coordinator!r}")
    if values.num_processes < 2:
        raise CommandError(f"--num_processes: expected at least 2, got {values.num_processes}")
    if not 0 <= values.process_id < values.num_processes:
        raise CommandError(
            f"--process_id: expected 0..{values.num_processes - 1}, got {values.process_id}"
        )
    if values.tensor_parallel % values.num_processes:
        raise CommandError(
            f"--tensor_parallel: expected a multiple of the {values.num_processes} processes, "
            f"got {values.tensor_parallel}"
        )
    if values.implementation == "simulate":
        raise CommandError(
            "--implementation: expected another than 'simulate' with --num_processes: simulated "
            "ranks are in one process"
        )
    if not values.prompt:
        raise CommandError("--prompt: expected at least one with --num_processes, got none")
    return True


def _others(names: tuple[str, ...], absent: list[str]) -> str:
    return " and ".join(f"--{name}" for name in names if name not in absent)


def devices(ranks: int, processes: int) -> list[jax.Device]:
    """The devices of the ranks, as many from each process.

    Raises:
      CommandError: a process has fewer.
    """
    each = ranks // processes
    found: list[jax.Device] = []
    for process in range(processes):
        own = [device for device in jax.devices() if device.process_index == process]
        if len(own) < each:
            there = "there are" if processes == 1 else f"of process {process}, {processes} times"
            raise CommandError(
                f"--tensor_parallel: expected at most {processes * len(own)} (the devices "
                f"{there}), got {ranks}"
            )
        found += own[:each]
    return found


def check_agreement(values: flags.FlagValues, *others: Any) -> None:
    """Checks that all processes are about to run the same program.

    Args:
      values: flags.
      others: what else counts, such as the tokens of the prompts; compared by `repr`.

    Raises:
      CommandError: some process has others.
    """
    if count(values) == 1:
        return
    given = {name: v for name, v in values.flag_values_dict().items() if name not in _OWN}
    text = repr((sorted(given.items()), others))
    mine = np.frombuffer(hashlib.sha256(text.encode(errors="replace")).digest(), np.uint32)
    all_digests = multihost_utils.process_allgather(mine)
    for process, digest in enumerate(all_digests):
        if not np.array_equal(digest, all_digests[0]):
            raise CommandError(
                "--num_processes: expected the same flags, prompts and model in all processes, "
                f"got others in process {process} than in process 0"
            )
