"""The command on a terminal, without a prompt: a conversation with the model."""

from __future__ import annotations

import concurrent.futures

import jax
from absl import flags

from jax_tkg.command_line import CommandError
from jax_tkg.generate import command_flags
from jax_tkg.generate.answer import Answer
from jax_tkg.generate.conversation import talk
from jax_tkg.generate.decoder_answers import read_prompts, write_answers
from jax_tkg.generate.loading import load_decoder, make_mesh, open_model
from jax_tkg.generate.progress import bars
from jax_tkg.generate.rates import Clock, note_rates
from jax_tkg.models.sampling import seed_keys

CHAT_CAPACITY = 4096
"""Tokens of a conversation on a terminal, where the model's context holds so many."""


def hold_conversation(values: flags.FlagValues) -> None:
    """A conversation on the terminal; each turn reads it from its beginning.

    Raises:
      CommandError: a flag cannot be used, or the model has no chat template.
      ModelError: the model cannot be used.
    """
    for flag, given in (("json", values.json), ("device_loop", values.device_loop)):
        if given:
            raise CommandError(f"--{flag}: expected --prompt with it, got none")
    command_flags.check_texts(values)
    command_flags.check_slots(values)
    checkpoint = open_model(values)
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
    mesh = make_mesh(values, checkpoint)
    keys = seed_keys(command_flags.prompt_seeds(values.seed, 1))
    threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="generate")
    with bars() as bar:
        decoder, ready_seconds = load_decoder(
            values, checkpoint, mesh, capacity, [32], threads, keys, bar
        )
    clock = Clock(decoder)
    read = written = 0
    reading = writing = 0.0

    def answer(tokens: list[int]) -> str:
        nonlocal keys, read, written, reading, writing
        clock.lap()
        with bars() as bar:
            state = read_prompts(decoder, [tokens], keys, bar("Reading the conversation"))
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, written + 1)
        read, reading = read + len(tokens), reading + clock.lap()
        answers = [Answer(checkpoint.tokenizer, stops=values.stop)]
        written += write_answers(values, decoder, [tokens], state, threads, answers)
        writing += clock.lap()
        return answers[0].text

    talk(template, checkpoint.tokenizer.encode, answer, room, values.system)
    if read:
        note_rates(read, reading, written, writing, ready_seconds, decoder)
    threads.shutdown(cancel_futures=True)
