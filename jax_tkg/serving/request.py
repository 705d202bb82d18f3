"""What a client asks for, and what it is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax_tkg.models.integers import as_integer, as_integers
from jax_tkg.models.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to be answered. Integers may be NumPy's; they are kept as Python's.

    Attributes:
      prompt: token ids, one or more.
      max_tokens: most tokens of the answer. It may end before: with a stop token, or where prompt
        and answer fill the capacity of the batch.
      sampling: how tokens are chosen.
      seed: of what is drawn, below 2**64. The same prompt, settings and seed give the same answer
        whatever else is served.
      stop_tokens: ids that end the answer; None: those of the batch.
    """

    prompt: Sequence[int]
    max_tokens: int = 128
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    stop_tokens: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
          ValueError: there is no token to read or to write, or the seed is out of range.
          TypeError: an integer is none, or `sampling` is no `Sampling`.
        """
        integers: dict[str, Any] = {
            "prompt": as_integers("prompt", self.prompt),
            "max_tokens": as_integer("max_tokens", self.max_tokens),
            "seed": as_integer("seed", self.seed),
        }
        if self.stop_tokens is not None:
            integers["stop_tokens"] = as_integers("stop_tokens", self.stop_tokens)
        for name, value in integers.items():
            # The class is frozen.
            object.__setattr__(self, name, value)
        if not isinstance(self.sampling, Sampling):
            raise TypeError(f"sampling: expected a Sampling, got {self.sampling!r}")
        if not self.prompt:
            raise ValueError("prompt: expected at least one token, got none")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {self.max_tokens}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed: expected 0 <= seed < 2**64, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class Event:
    """A token of an answer.

    Attributes:
      request: the id that `RunningBatch.submit` returned.
      token: the next token of the answer; None with the finish reason "error".
      finish_reason: None where more tokens follow; "stop" for a stop token; "length" where the
        answer has `max_tokens` tokens or fills the capacity; "error" where the model's scores are
        NaN, since activations exceed the range of the dtype.
    """

    request: int
    token: int | None
    finish_reason: str | None = None
