"""How many tokens a second are read and written, without the time in which programs compile."""

from __future__ import annotations

import time

from jax_tkg.command_line import note
from jax_tkg.models.decode import Decoder
from jax_tkg.serving import RunningBatch


class Clock:
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


def note_rates(
    read: int, reading: float, written: int, writing: float, ready: float, decoder: Decoder
) -> None:
    """Writes the rates of a decoder: tokens read and written, with their seconds."""
    note(
        f"prompt: {read} tokens, {read / reading:.1f} tokens/s; "
        f"decode: {written} tokens, {written / writing:.1f} tokens/s; "
        f"besides {ready + decoder.compile_seconds:.1f} s to load and compile"
    )
