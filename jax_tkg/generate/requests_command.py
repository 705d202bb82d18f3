"""The command with --requests: a running batch answers the requests of a file."""

from __future__ import annotations

import concurrent.futures
import time

from absl import flags

from jax_tkg.command_line import CommandError, note
from jax_tkg.generate import command_flags
from jax_tkg.generate.loading import load_batch, make_mesh, open_model
from jax_tkg.generate.progress import bars
from jax_tkg.generate.rates import Clock
from jax_tkg.generate.request_answers import parse_all, serve
from jax_tkg.generate.request_lines import Defaults, LineParser, PromptEncoder, read_lines
from jax_tkg.generate.trace_errors import trace_errors


def answer_requests(values: flags.FlagValues) -> None:
    """Answers the requests of a file.

    Raises:
      CommandError: some of its lines were no requests; the others are answered.
    """
    for flag, given in (("prompt", values.prompt), ("device_loop", values.device_loop)):
        if given:
            raise CommandError(f"--{flag}: expected none with --requests, got one")
    if values.prompt_lookup_num_tokens:
        raise CommandError(
            "--prompt_lookup_num_tokens: expected 0 with --requests, got "
            f"{values.prompt_lookup_num_tokens}"
        )
    if len(values.seed) > 1:
        raise CommandError(f"--seed: expected 1 with --requests, got {len(values.seed)}")
    command_flags.check_texts(values)
    defaults = Defaults(
        values.max_tokens,
        command_flags.sampling(values),
        values.seed[0],
        tuple(values.stop),
        values.system,
    )
    contents = read_lines(values.requests)
    checkpoint = open_model(values)
    tokenizer = checkpoint.tokenizer
    command_flags.check_chat(values, tokenizer)
    chat = tokenizer.chat_template is not None and values.chat is not False
    encoder = PromptEncoder(tokenizer, chat, checkpoint.config.context_length)
    threads = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="generate")
    parser = LineParser(values.requests, defaults, encoder)
    lines, bad = parse_all(parser, contents, threads)
    if lines:
        started = time.perf_counter()
        mesh = make_mesh(values, checkpoint)
        with bars() as bar:
            batch = load_batch(values, checkpoint, mesh, lines, threads, bar)
        ready = time.perf_counter() - started
        clock = Clock(batch)
        with trace_errors():
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
