"""Loading a model onto its devices while its programs compile."""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from jax_tkg.command_line import CommandError
from jax_tkg.generate import command_flags, processes
from jax_tkg.generate.progress import Bar
from jax_tkg.generate.request_lines import RequestLine
from jax_tkg.generate.trace_errors import trace_errors
from jax_tkg.models.checkpoint import Checkpoint, open_checkpoint
from jax_tkg.models.decode import Decoder, context_bucket
from jax_tkg.models.default_model import default_model
from jax_tkg.models.errors import ModelError
from jax_tkg.models.executables import Compiled
from jax_tkg.models.packing import (
    PackedModel,
    check_tensor_parallel,
    head_split,
    hidden_multiple_for,
)
from jax_tkg.models.placed_parameters import TENSOR_AXIS
from jax_tkg.models.speculation import SpeculativeDecoder
from jax_tkg.serving import RunningBatch


def open_model(values: flags.FlagValues) -> Checkpoint:
    """The model that the flags name, or the default one; its weights are not read yet.

    Raises:
      ModelError: it is not there, or cannot be used.
    """
    return open_checkpoint(default_model() if values.model is None else values.model)


def make_mesh(values: flags.FlagValues, checkpoint: Checkpoint) -> jax.sharding.Mesh | None:
    """A mesh of the given size; on a CPU its devices are made. To be called before JAX is used.

    Raises:
      CommandError: the model does not split over these devices.
    """
    ranks = values.tensor_parallel
    try:
        check_tensor_parallel(checkpoint.config, ranks)
    except ModelError as error:
        raise CommandError(f"--{error}") from None
    copies = head_split(checkpoint.config, ranks).copies
    if values.context_parallel < 1 or copies % values.context_parallel:
        raise CommandError(
            f"--context_parallel: expected a divisor of the {copies} devices that have a KV head "
            f"in common, got {values.context_parallel}"
        )
    if ranks == 1:
        return None
    # Takes effect only before JAX starts its CPU backend, and for that backend only.
    count = processes.count(values)
    jax.config.update("jax_num_cpu_devices", ranks // count)
    return jax.sharding.Mesh(np.asarray(processes.devices(ranks, count)), (TENSOR_AXIS,))


def load_decoder(
    values: flags.FlagValues,
    checkpoint: Checkpoint,
    mesh: jax.sharding.Mesh | None,
    capacity: int,
    lengths: Sequence[int],
    threads: concurrent.futures.Executor,
    keys: jax.Array,
    bar: Callable[[str], Bar],
) -> tuple[Decoder, float]:
    """A decoder with its model, compiled for prompts of these lengths, and the seconds it took.

    Raises:
      CommandError: the implementation cannot run here or at these sizes.
      ModelError: the model cannot be loaded.
    """
    sampling = command_flags.sampling(values)
    started = time.perf_counter()
    dtype, hidden_multiple = command_flags.DTYPES[values.dtype], _hidden_multiple(values, mesh)
    drafts = values.prompt_lookup_num_tokens
    make = functools.partial(SpeculativeDecoder, num_drafts=drafts) if drafts else Decoder
    decoder = make(
        checkpoint.outline(dtype, values.tensor_parallel, hidden_multiple),
        capacity=capacity,
        mesh=mesh,
        sampling=sampling,
        stop_tokens=checkpoint.tokenizer.stop_tokens,
        implementation=values.implementation,
        context_parallel=values.context_parallel,
    )
    loading = threads.submit(
        checkpoint.load, dtype, values.tensor_parallel, bar("Loading layers"), hidden_multiple
    )
    compiling = decoder.prepare(threads, lengths, keys, values.device_loop)
    _wait(loading, compiling, bar("Compiling"))
    decoder.place(loading.result())
    return decoder, time.perf_counter() - started


def load_batch(
    values: flags.FlagValues,
    checkpoint: Checkpoint,
    mesh: jax.sharding.Mesh | None,
    lines: Sequence[RequestLine],
    threads: concurrent.futures.Executor,
    bar: Callable[[str], Bar],
) -> RunningBatch:
    """A batch with its model, compiled for these requests.

    Raises:
      CommandError: the implementation cannot run here or at these sizes.
      ModelError: the model cannot be loaded.
    """
    dtype, hidden_multiple = command_flags.DTYPES[values.dtype], _hidden_multiple(values, mesh)
    longest = max(len(line.request.prompt) + line.request.max_tokens for line in lines)
    batch = RunningBatch(
        checkpoint.outline(dtype, values.tensor_parallel, hidden_multiple),
        slots=min(values.slots, len(lines)),
        capacity=context_bucket(longest, checkpoint.config.context_length),
        mesh=mesh,
        stop_tokens=checkpoint.tokenizer.stop_tokens,
        implementation=values.implementation,
        context_parallel=values.context_parallel,
    )
    loading = threads.submit(
        checkpoint.load, dtype, values.tensor_parallel, bar("Loading layers"), hidden_multiple
    )
    _wait(loading, batch.prepare(threads, longest), bar("Compiling"))
    batch.place(loading.result())
    return batch


def _hidden_multiple(values: flags.FlagValues, mesh: jax.sharding.Mesh | None) -> int:
    """What the hidden size is padded to, for the devices and the implementation that run."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return hidden_multiple_for(device.platform, values.implementation)


def _wait(
    loading: concurrent.futures.Future[PackedModel], compiling: Sequence[Compiled], bar: Bar
) -> None:
    """Waits until the model is loaded and compiled.

    Raises:
      CommandError: the implementation cannot run here or at these sizes, which is known when the
        call is traced.
      ModelError: the model cannot be loaded.
    """
    waiting: set[concurrent.futures.Future[Any]] = {loading, *compiling}
    while waiting:
        bar(sum(executable.done() for executable in compiling), len(compiling))
        done, waiting = concurrent.futures.wait(
            waiting, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for finished in done:
            with trace_errors():
                finished.result()
