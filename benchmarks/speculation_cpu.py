"""Decoding with and without drafts by prompt look-up, on this machine's CPU.

python -m benchmarks.speculation_cpu [--dtypes bf16] [--num_drafts 7] [--max_tokens 128]

SmolLM2 answers three prompts, greedily, one sequence at a time: two summaries of a notice, in its
own words and in the notice's, and a story, which repeats nothing. Everything is compiled before,
and reading the prompts is not counted. The candidates take turns, and their texts are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import report, steps
from benchmarks.measuring import Candidate, measure_in_turns
from jax_tkg.models.checkpoint import Checkpoint, open_checkpoint
from jax_tkg.models.decode import Decoder, DecodeState
from jax_tkg.models.default_model import default_model
from jax_tkg.models.speculation import MOST_DRAFTS, SpeculativeDecoder

NOTICE = (
    "The town library opens a reading room on the second floor of the old post office on Monday, "
    "March 4. The reading room has sixty seats, twelve of them beside a window, and four rooms for "
    "groups of up to six people. Rooms for groups can be booked at the desk or by telephone, for "
    "two hours at a time and at most three times a month. Food is not allowed in the reading room, "
    "but water in closed bottles is. The library asks visitors to leave coats and large bags in "
    "the lockers beside the entrance, which take a coin that is given back. The room is open "
    "from nine in the morning to eight in the evening on weekdays and from ten to four on "
    "Saturdays; it is closed on Sundays and holidays. On the first day, at five in the afternoon, "
    "the mayor and the head of the library will speak about the history of the old post office, "
    "and a choir of the music school will sing. Everybody is invited, and no ticket is needed."
)

PROMPTS = {
    "summary": f"Summarize the following notice.\n\n{NOTICE}",
    "key sentences": f"Repeat the key sentences of this notice.\n\n{NOTICE}",
    "story": "Tell me a short story about a lighthouse keeper who finds a map in a bottle.",
}

_DTYPES = flags.DEFINE_multi_enum("dtypes", ["f32"], ["f32", "bf16"], "Dtypes.")
_DRAFTS = flags.DEFINE_integer("num_drafts", MOST_DRAFTS, "Tokens that a step verifies.")
_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Tokens of an answer.", lower_bound=2)
_TURNS = flags.DEFINE_integer("turns", 3, "Turns of each candidate.", lower_bound=1)


class _Answering:
    """Answers one prompt again and again.

    Attributes:
      text: the tokens of the last answer.
    """

    def __init__(
        self, decoder: Decoder, prompt: list[int], answer: Callable[[DecodeState], Iterator[Any]]
    ):
        self._decoder = decoder
        self._prompt = prompt
        self._answer = answer
        self._reading = 0.0
        self.text: list[int] = []

    def run(self) -> None:
        started = time.perf_counter()
        state = jax.block_until_ready(self._decoder.start([self._prompt]))
        self._reading += time.perf_counter() - started
        self.text = [int(tokens[0]) for tokens in self._answer(state)]

    def clock(self) -> float:
        """Seconds, without those in which prompts were read."""
        return time.perf_counter() - self._reading


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    checkpoint = open_checkpoint(default_model())
    rows = []
    for dtype in dict.fromkeys(_DTYPES.value):
        model = steps.loaded(checkpoint, dtype)
        stops = checkpoint.tokenizer.stop_tokens
        capacity = 1024
        plain = Decoder(model, capacity, stop_tokens=stops)
        drafting = SpeculativeDecoder(model, capacity, num_drafts=_DRAFTS.value, stop_tokens=stops)
        for name, text in PROMPTS.items():
            print(f"measuring {dtype}, {name} ...", flush=True)
            prompt = _encoded(checkpoint, text)
            rows.append({"weights": dtype, "answer": name, **_row(plain, drafting, prompt)})
    report.print_table(rows)
    heading = "Tokens per second of SmolLM2 with drafts by prompt look-up, medians"
    print(report.write_markdown("speculation_cpu", heading, rows))
    print(report.write_json("speculation_cpu", {"rows": rows}))


def _encoded(checkpoint: Checkpoint, text: str) -> list[int]:
    template = checkpoint.tokenizer.chat_template
    assert template is not None
    return checkpoint.tokenizer.encode(template.prompt([{"role": "user", "content": text}]))


def _row(plain: Decoder, drafting: SpeculativeDecoder, prompt: list[int]) -> dict[str, Any]:
    most = _TOKENS.value
    without = _Answering(plain, prompt, lambda state: plain.stream(state, most))
    drafts = _Answering(drafting, prompt, lambda state: drafting.speculate([prompt], state, most))
    candidates = [
        Candidate("plain", without.run, clock=without.clock),
        Candidate("drafts", drafts.run, clock=drafts.clock),
    ]
    timings = measure_in_turns(candidates, _TURNS.value, runs=1)
    count = len(without.text)
    ratios = timings["plain"].ratios_to(timings["drafts"])
    return {
        "tokens": count,
        "same text": drafts.text == without.text,
        "plain": count / timings["plain"].median,
        "drafts": count / timings["drafts"].median,
        "drafts / plain": float(np.median(ratios)),
        "smallest": min(ratios),
    }


if __name__ == "__main__":
    app.run(main)
