"""A whole model's token in parts: layers, all-reduces, head, and an assumed gap of the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax_tkg.profile.layer import Launches, layer_figures
from jax_tkg.profile.model_shapes import Case, LayerKind
from jax_tkg.profile.recording import record
from jax_tkg.simulator.timing.costs import Costs
from jax_tkg.simulator.timing.stress import Machine

SECOND = 1e9
"""ns."""


@dataclasses.dataclass(frozen=True)
class TokenTime:
    """Modeled time of one step of a whole model on one machine, in ns.

    Attributes:
      machine: its assumptions.
      B, S: sequences, and new tokens of each.
      layers: all layers as if all-reduces took no time.
      all_reduces: what they add.
      head: final norm, head and greedy choice; 0 if it is not modeled.
      launch: start and end of the launch.
      host_gap: assumed time between two steps in which the device has nothing to do.
    """

    machine: Machine
    B: int
    S: int
    layers: float
    all_reduces: float
    head: float
    launch: float
    host_gap: float

    @property
    def total(self) -> float:
        """Of a step."""
        return self.layers + self.all_reduces + self.head + self.launch + self.host_gap

    @property
    def per_user(self) -> float:
        """Tokens a second of each sequence, of which a step writes one."""
        return SECOND / self.total

    @property
    def per_second(self) -> float:
        """Tokens a second of all sequences."""
        return self.B * self.per_user


def record_head(case: Case, V: int) -> Launches:
    """Launches of one layer, without and with the head of V columns on this rank.

    Raises:
      ValueError: the kernel cannot run the case.
    """
    with_head = dataclasses.replace(
        case,
        V=V,
        operands=(*case.operands, "W_gamma_final", "W_head"),
        options=(*case.options, ("candidates_per_token", 1)),
    )
    return Launches(with_head, "ours", 1, (record(case, 1), record(with_head, 1)))


def token_time(
    kinds: Sequence[tuple[LayerKind, Launches]],
    head: Launches | None,
    machine: Machine,
    costs: Costs,
    host_gap: float,
) -> TokenTime:
    """Schedules what was recorded of a model on a machine.

    Args:
      kinds: each kind of layers with recorded launches of it.
      head: of `record_head`, or None.
      machine: whose assumptions.
      costs: of the generation.
      host_gap: in ns.
    """
    changed, rate, placement = machine.costs(costs), machine.tensor_rate, machine.placement
    layers = all_reduces = launch = 0.0
    for number, (kind, launches) in enumerate(kinds):
        figures = layer_figures(launches, changed, rate, placement=placement)
        alone = layer_figures(launches, changed, rate, False, placement)
        layers += kind.layers * alone.latency
        all_reduces += kind.layers * (figures.latency - alone.latency)
        launch = launch if number else figures.start_up
    case = kinds[0][1].case
    of_head = 0.0
    if head is not None:
        of_head = layer_figures(head, changed, rate, placement=placement).latency
    return TokenTime(machine, case.B, case.S, layers, all_reduces, of_head, launch, host_gap)


def describe(steps: Sequence[Sequence[TokenTime]], with_head: bool) -> str:
    """A table: for each batch the first machine's parts, and the range over all machines.

    Args:
      steps: for each batch, the times on each machine, the one that is spelled out first.
      with_head: whether the head was modeled.
    """
    first = steps[0][0]
    lines = [
        f"a step of the whole model, modeled ({first.machine.name} constants, without embedding"
        + ("" if with_head else " and the head")
        + f"; host gap of {first.host_gap / 1e3:g} us assumed)",
        f"{'B':>5}{'layers':>11}{'all-reduces':>13}{'head':>9}{'launch':>8}{'host gap':>10}"
        f"{'step':>11}  us{'per user':>10}{'all users':>11}  tokens/s",
    ]
    for times in steps:
        one = times[0]
        lines.append(
            f"{one.B:5}{one.layers / 1e3:11.1f}{one.all_reduces / 1e3:13.1f}{one.head / 1e3:9.1f}"
            f"{one.launch / 1e3:8.1f}{one.host_gap / 1e3:10.1f}{one.total / 1e3:11.1f}    "
            f"{one.per_user:10.1f}{one.per_second:11.1f}"
        )
        low, high = min(t.total for t in times), max(t.total for t in times)
        slow, fast = min(t.per_user for t in times), max(t.per_user for t in times)
        lines.append(
            f"      on other machines, modeled: {low / 1e3:.1f} to {high / 1e3:.1f} us, "
            f"{slow:.1f} to {fast:.1f} tokens/s for each user, {one.B * slow:.1f} to "
            f"{one.B * fast:.1f} for all"
        )
    lines.append(
        "no document gives the host's gap between two steps; published times of whole models "
        "leave 110 to 230 us a layer\nunexplained, of which the host's part is not known "
        "(docs/timeline.md)"
    )
    return "\n".join(lines)
