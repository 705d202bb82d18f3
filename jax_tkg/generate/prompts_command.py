"""The command with --prompt: the prompts are a batch, and each gets an answer."""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from jax_tkg.command_line import CommandError
from jax_tkg.generate import command_flags, processes
from jax_tkg.generate.answer import Answer
from jax_tkg.generate.decoder_answers import read_prompts, write_answers
from jax_tkg.generate.loading import load_decoder, make_mesh, open_model
from jax_tkg.generate.progress import bars
from jax_tkg.generate.rates import Clock, note_rates
from jax_tkg.models.checkpoint import Checkpoint
from jax_tkg.models.decode import context_bucket
from jax_tkg.models.sampling import seed_keys
from jax_tkg.models.tokenizer import Tokenizer


def answer_prompts(values: flags.FlagValues) -> None:
    """Answers the prompts.

    Raises:
      CommandError: a flag or a prompt cannot be used.
      ModelError: the model cannot be used.
    """
    prompts = _prompts(values)
    if values.device_loop and values.prompt_lookup_num_tokens:
        raise CommandError("--prompt_lookup_num_tokens: expected 0 with --device_loop")
    seeds = command_flags.prompt_seeds(values.seed, len(prompts))
    checkpoint = open_model(values)
    encoded = [_encode(values, checkpoint.tokenizer, prompt) for prompt in prompts]
    lengths = [len(tokens) for tokens in encoded]
    threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="generate")
    with bars() as bar:
        capacity = _capacity(values, checkpoint, encoded)
        mesh = make_mesh(values, checkpoint)
        processes.check_agreement(values, encoded, checkpoint.config)
        keys = seed_keys(seeds)
        decoder, ready_seconds = load_decoder(
            values, checkpoint, mesh, capacity, lengths, threads, keys, bar
        )
        clock = Clock(decoder)
        state = read_prompts(decoder, encoded, keys, bar("Reading the prompt"))
        prefill_seconds = clock.lap()
    timings = {"load": ready_seconds, "prompt": prefill_seconds}
    answers = _answers(values, checkpoint.tokenizer, prompts, lengths, timings, clock)
    written = write_answers(values, decoder, encoded, state, threads, answers)
    note_rates(sum(lengths), prefill_seconds, written, clock.lap(), ready_seconds, decoder)
    threads.shutdown(cancel_futures=True)


def _prompts(values: flags.FlagValues) -> list[str]:
    if not values.prompt:
        raise CommandError("--prompt: expected at least one, got none; see --help")
    if values.prompt.count("-") > 1:
        raise CommandError("--prompt: expected - once, for standard input can be read once")
    command_flags.check_texts(values)
    command_flags.check_slots(values)
    return [_standard_input() if text == "-" else text for text in values.prompt]


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


def _encode(values: flags.FlagValues, tokenizer: Tokenizer, prompt: str) -> list[int]:
    if not prompt:
        raise CommandError("--prompt: expected a text, got an empty one")
    command_flags.check_chat(values, tokenizer)
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


def _answers(
    values: flags.FlagValues,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    lengths: Sequence[int],
    timings: dict[str, float],
    clock: Clock,
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
