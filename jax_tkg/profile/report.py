"""A layer's modeled figures in words."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from jax_tkg.profile.layer import LayerFigures, bound, required_bytes
from jax_tkg.profile.model_shapes import Case, LayerKind
from jax_tkg.simulator.timing.high_water import high_water
from jax_tkg.simulator.timing.timeline import Timeline

RATES = {"half": "throttled to half rate", "ramp": "ramping up under load", "full": "at full rate"}


def describe(case: Case, figures: LayerFigures, name: str) -> str:
    """Latency, traffic, busy time, memory and the critical path; every section says "modeled".

    Args:
      case: the sizes.
      figures: of the case with collectives.
      name: of the kernel.
    """
    costs = figures.timeline.costs
    least = bound(case, costs)
    total = sum(figures.hbm_bytes.values())
    peak = costs.hbm_bandwidth * case.lnc
    lines = [
        f"{name}, modeled: {costs.target}, {case.lnc} physical cores, Tensor Engine "
        f"{RATES[figures.timeline.tensor_rate]}"
        + (
            f", all-reduce over {case.tensor_parallel} ranks with a latency of "
            f"{costs.all_reduce_latency / 1e3:g} us"
            if case.tensor_parallel > 1
            else ""
        ),
        f"  modeled latency of a layer      {figures.latency / 1e3:10.2f} us, "
        f"{figures.latency / least:.2f} times the HBM bound of {least / 1e3:.2f} us",
        f"  modeled start and end of a launch {figures.start_up / 1e3:8.2f} us",
        f"  modeled HBM bandwidth           {total / figures.latency:10.0f} GB/s of {peak:.0f}",
        f"  modeled HBM traffic of a layer  {total:10d} bytes, "
        f"{total / required_bytes(case) - 1:+.2%} over each weight and attended cache byte once",
    ]
    lines += [
        f"    {kind:12} {count:14d} bytes" for kind, count in figures.hbm_bytes.items() if count
    ]
    if case.experts:
        lines.append(
            f"    experts read: {case.experts_read()} of {case.experts}, chosen at random by "
            f"{case.B * case.S} tokens"
        )
    lines.append(f"  instructions of a modeled layer {figures.instructions:10d} on the first core")
    lines.append("  modeled busy time of a layer (first core; DMA: mean of its engines)")
    lines += [
        f"    {engine:12} {time / 1e3:10.2f} us  {time / figures.latency:4.0%}"
        for engine, time in figures.busy.items()
    ]
    lines.append(f"  modeled most on-chip memory in use: {_marks(figures.timeline)}")
    lines.append("  modeled critical path of a layer, by statement")
    lines += _critical(figures)
    return "\n".join(lines)


def describe_token(kinds: Sequence[tuple[LayerKind, Case, LayerFigures]]) -> str:
    """The latency of all layers of a model, modeled, and of each kind of layer beside its bound.

    Args:
      kinds: each kind of layer with the case and the figures of one such layer.
    """
    first = kinds[0][2]
    token = first.start_up + sum(kind.layers * figures.latency for kind, _, figures in kinds)
    least = sum(kind.layers * bound(case, figures.timeline.costs) for kind, case, figures in kinds)
    lines = [
        f"modeled latency of a token, without embedding and head: {token / 1e3:.2f} us, "
        f"{token / least:.2f} times the HBM bound of {least / 1e3:.2f} us",
        f"  {first.start_up / 1e3:10.2f} us  start and end of a launch",
    ]
    for kind, case, figures in kinds:
        lines.append(
            f"  {kind.layers * figures.latency / 1e3:10.2f} us  {describe_kind(kind)}, "
            f"{figures.latency / bound(case, figures.timeline.costs):.2f} times their bound"
        )
    return "\n".join(lines)


def describe_kind(kind: LayerKind) -> str:
    """A kind of layer in words."""
    number = "1 layer" if kind.layers == 1 else f"{kind.layers} layers"
    return number + (f" with a window of {kind.window} slots" if kind.window else "")


def _marks(timeline: Timeline) -> str:
    found = {e.instruction.index: e.instruction for e in timeline.events if not e.instruction.core}
    stream = [found[index] for index in sorted(found)]
    return ", ".join(
        f"{space.upper()} {high_water(stream, space).partition_bytes} bytes per partition"
        for space in ("sbuf", "psum")
    )


def _critical(figures: LayerFigures, statements: int = 15) -> list[str]:
    shown = figures.critical[:statements]
    rest = figures.latency - sum(time for _, time in shown)
    lines = [f"    {time / 1e3:10.2f} us  {shorten(words)}" for words, time in shown]
    return [*lines, f"    {rest / 1e3:10.2f} us  all others"]


def shorten(words: str) -> str:
    """Words that end in a file and line, with only the file's name and its folder's."""
    text, _, place = words.rpartition(" ")
    path, _, line = place.rpartition(":")
    return f"{text} {'/'.join(pathlib.PurePath(path).parts[-2:])}:{line}".strip()
