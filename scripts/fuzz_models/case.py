"""One mutated model and what is known of it."""

from __future__ import annotations

import dataclasses
import enum
import pathlib
import random
from collections.abc import Callable
from typing import Any


class Verdict(enum.Enum):
    """What must become of a case."""

    REFUSED = "must be refused"
    LOADED = "must load"
    EITHER = "may load or be refused"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What was done to a model.

    Attributes:
      name: tells it to a person.
      verdict: what must become of the model.
      mentions: what the refusal must name, such as the key; empty where that is open.
    """

    name: str
    verdict: Verdict = Verdict.EITHER
    mentions: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A mutated model.

    Attributes:
      path: what to open.
      mutation: what was done to it.
    """

    path: pathlib.Path
    mutation: Mutation


Mutator = Callable[[random.Random, Any], Mutation]
"""Changes an image of a model in place and says how."""


def refused(name: str, mentions: str = "") -> Mutation:
    """A mutation after which the model must be refused."""
    return Mutation(name, Verdict.REFUSED, mentions)


def joined(mutations: list[Mutation]) -> Mutation:
    """Several mutations of one model, in order, as one.

    Whatever the others did, the last one was not undone.
    """
    if len(mutations) == 1:
        return mutations[0]
    must_be_refused = mutations[-1].verdict is Verdict.REFUSED
    return Mutation(
        name="; ".join(mutation.name for mutation in mutations),
        verdict=Verdict.REFUSED if must_be_refused else Verdict.EITHER,
    )
