"""Command line: a llama-architecture model in a GGUF file writes text through `transformer_tkg`.

python -m jax_tkg.generate --prompt "What is the capital of France?"
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, flags, logging
from rich import console as rich_console
from rich import progress as rich_progress

from jax_tkg.models import find, gguf
from jax_tkg.models.decode import TENSOR_AXIS, Decoder, DecodeState
from jax_tkg.models.llama import LlamaModel
from jax_tkg.models.sampling import Sampling
from jax_tkg.models.tokenizer import Tokenizer

_PROMPT = flags.DEFINE_multi_string("prompt", None, "What to say to the model; repeat for a batch.")
_MODEL = flags.DEFINE_string("model", None, "GGUF file; default: the SmolLM2 that was fetched.")
_TENSOR_PARALLEL = flags.DEFINE_integer("tensor_parallel", 1, "Devices to split the model over.")
_DTYPE = flags.DEFINE_enum("dtype", "f32", ["bf16", "f16", "f32"], "Dtype of weights and compute.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Most tokens to write per prompt.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token each time.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that reach this sum.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
_CHAT = flags.DEFINE_boolean("chat", True, "Put the prompt into the model's chat template.")
_SYSTEM = flags.DEFINE_string("system", None, "System message of the chat.")

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if len(arguments) > 1:
        print(f"error: unexpected argument {arguments[1]!r}; see --help", file=sys.stderr)
        return 1
    try:
        _run(_PROMPT.value or [])
    except ValueError as error:
        # ModelError among them: everything a user can get wrong, told in one line.
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(prompts: Sequence[str]) -> None:
    if _MAX_TOKENS.value < 1:
        raise ValueError(f"--max_tokens: expected at least 1, got {_MAX_TOKENS.value}")
    sampling = Sampling(_TEMPERATURE.value, _TOP_P.value)
    file = gguf.GgufFile(_MODEL.value or find.default_model())
    tokenizer = Tokenizer(file)
    encoded = [tokenizer.encode(_as_text(tokenizer, prompt)) for prompt in prompts]
    longest = max(len(ids) for ids in encoded)
    config = gguf.read_config(file)
    if longest >= config.context_length:
        raise ValueError(
            f"--prompt: expected fewer than {config.context_length} tokens (the model's context "
            f"length), got {longest}"
        )
    mesh = _mesh(_TENSOR_PARALLEL.value)
    display = rich_progress.Progress(
        "[progress.description]{task.description}",
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        console=rich_console.Console(stderr=True),
        transient=True,
    )
    with display:
        model = _load(file, display)
        decoder = Decoder(
            model,
            capacity=min(longest + _MAX_TOKENS.value, config.context_length),
            mesh=mesh,
            sampling=sampling,
            stop_tokens=tokenizer.stop_tokens,
        )
        started = time.perf_counter()
        state = _prefill(decoder, encoded, display)
        prefill_seconds = time.perf_counter() - started
    written, decode_seconds = _write(decoder, state, tokenizer, prompts)
    read = sum(len(ids) for ids in encoded)
    print(
        f"prompt: {read} tokens, {read / prefill_seconds:.1f} tokens/s; "
        f"decode: {written} tokens, {written / decode_seconds:.1f} tokens/s "
        f"(both with compilation)",
        file=sys.stderr,
    )


def _as_text(tokenizer: Tokenizer, prompt: str) -> str:
    if not prompt:
        raise ValueError("--prompt: expected a text, got an empty one")
    if _CHAT.value and (tokenizer.has_chat_template or _SYSTEM.value is not None):
        return tokenizer.chat_prompt(prompt, _SYSTEM.value)
    return prompt


def _mesh(ranks: int) -> jax.sharding.Mesh | None:
    """A mesh of the given size; on a CPU its devices are made."""
    if ranks < 1:
        raise ValueError(f"--tensor_parallel: expected at least 1, got {ranks}")
    if ranks == 1:
        return None
    # Takes effect only before JAX starts its CPU backend, and for that backend only.
    jax.config.update("jax_num_cpu_devices", ranks)
    devices = jax.devices()
    if len(devices) < ranks:
        raise ValueError(
            f"--tensor_parallel: expected at most {len(devices)} (the devices there are), "
            f"got {ranks}"
        )
    return jax.sharding.Mesh(np.asarray(devices[:ranks]), (TENSOR_AXIS,))


def _load(file: gguf.GgufFile, display: rich_progress.Progress) -> LlamaModel:
    task = display.add_task("Loading layers", total=None)

    def progress(done: int, total: int) -> None:
        display.update(task, completed=done, total=total)

    dtype = _DTYPES[_DTYPE.value]
    return gguf.load(file, dtype, _TENSOR_PARALLEL.value, progress)


def _prefill(
    decoder: Decoder, prompts: Sequence[Sequence[int]], display: rich_progress.Progress
) -> DecodeState:
    task = display.add_task("Reading the prompt", total=None)

    def progress(done: int, total: int) -> None:
        display.update(task, completed=done, total=total)

    state = decoder.start(prompts, jax.random.key(_SEED.value), progress)
    return jax.block_until_ready(state)


def _write(
    decoder: Decoder, state: DecodeState, tokenizer: Tokenizer, prompts: Sequence[str]
) -> tuple[int, float]:
    """Writes the answers; a single one as it comes, several when each is complete.

    Returns:
      Tokens written, and the seconds they took.
    """
    streams = [tokenizer.stream() for _ in prompts]
    texts = [""] * len(prompts)
    written = 0
    started = time.perf_counter()
    for tokens in decoder.stream(state, _MAX_TOKENS.value):
        for index, token in enumerate(tokens.tolist()):
            if token < 0:
                continue
            written += 1
            piece = streams[index].step(token)
            texts[index] += piece
            if len(prompts) == 1:
                print(piece, end="", flush=True)
    seconds = time.perf_counter() - started
    for index, stream in enumerate(streams):
        rest = stream.finish()
        if len(prompts) == 1:
            print(rest)
        else:
            print(f"--- {prompts[index]}\n{texts[index]}{rest}")
    return written, seconds


def run() -> None:
    """Entry point: parses the flags and exits with the command's code."""
    flags.mark_flag_as_required("prompt")
    # JAX reports through absl's log which backends it does not find; only warnings matter here.
    flags.FLAGS.set_default("verbosity", logging.WARNING)
    app.run(main)


if __name__ == "__main__":
    run()
