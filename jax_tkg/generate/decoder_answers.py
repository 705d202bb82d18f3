"""A decoder reads prompts, and its answers are written as their tokens come."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import flags

from jax_tkg.command_line import note
from jax_tkg.generate.answer import Answer
from jax_tkg.generate.progress import Bar
from jax_tkg.generate.trace_errors import trace_errors
from jax_tkg.models.decode import NO_TOKEN, Decoder, DecodeState
from jax_tkg.models.speculation import SpeculativeDecoder


def read_prompts(
    decoder: Decoder, prompts: Sequence[Sequence[int]], keys: jax.Array, bar: Bar
) -> DecodeState:
    """Reads the prompts.

    Raises:
      CommandError: the model's vocabulary lacks a token of its tokenizer.
    """
    with trace_errors():
        return jax.block_until_ready(decoder.start(prompts, keys, bar))


def write_answers(
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
