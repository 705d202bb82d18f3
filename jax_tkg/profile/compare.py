"""Two kernels' modeled figures on the same case, side by side."""

from __future__ import annotations

from jax_tkg.profile.layer import LayerFigures, bound, required_bytes
from jax_tkg.profile.model_shapes import Case


def side_by_side(case: Case, ours: LayerFigures, theirs: LayerFigures) -> str:
    """A table of what differs, all modeled."""
    costs = ours.timeline.costs
    least = bound(case, costs)
    needed = required_bytes(case)
    rows = [
        ("latency of a layer, us", ours.latency / 1e3, theirs.latency / 1e3),
        ("times the HBM bound", ours.latency / least, theirs.latency / least),
        ("start and end of a launch, us", ours.start_up / 1e3, theirs.start_up / 1e3),
        ("HBM traffic, times the least", _traffic(ours) / needed, _traffic(theirs) / needed),
        *(
            (f"{engine} busy, us", ours.busy[engine] / 1e3, theirs.busy[engine] / 1e3)
            for engine in ours.busy
        ),
    ]
    lines = [f"{'modeled':32}{'jax_tkg':>12}{'nkilib':>12}{'ratio':>8}"]
    for name, mine, other in rows:
        ratio = f"{mine / other:8.2f}" if other else f"{'-':>8}"
        lines.append(f"{name:32}{mine:12.2f}{other:12.2f}{ratio}")
    return "\n".join(lines)


def _traffic(figures: LayerFigures) -> int:
    return sum(figures.hbm_bytes.values())
