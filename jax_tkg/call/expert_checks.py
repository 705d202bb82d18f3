"""Checks of layers with experts: what they must have, and how their experts are split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax_tkg.call.dimensions import Dimensions
from jax_tkg.call.operand_table import BY_NAME, OPERANDS
from jax_tkg.call.replica_groups import Groups

Layers = Mapping[str, Sequence[tuple[str, Any]]]
"""By operand, the label and the array (or None) of each layer."""

_EXPERTS_RANK = 3
"""Axes of W_gates in a layer with experts."""

_SHARED = ("W_shared_gates", "W_shared_ups", "W_shared_downs")


@dataclasses.dataclass(frozen=True)
class RoutingOptions:
    """The options that layers with experts depend on, in canonical form.

    Attributes:
      experts_per_token: k, or None.
      routing: one of `options.ROUTINGS`.
      replica_groups: groups of ranks, or None.
    """

    experts_per_token: int | None = None
    routing: str = "softmax_topk"
    replica_groups: Groups | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> RoutingOptions:
        """Of all canonical options by name."""
        return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)})

    @property
    def ranks(self) -> int:
        """How many ranks sum their results."""
        return len(self.replica_groups[0]) if self.replica_groups else 1


NO_EXPERTS = RoutingOptions()
"""The defaults."""


def check_expert_layers(layers: Layers) -> None:
    """Checks that each layer has the arrays of a dense MLP or those of experts, and no others.

    Raises:
      TypeError: a layer with experts has no router, or some matrices of a shared expert only.
      ValueError: an array has the axes of the other kind, or belongs to experts that are not there.
    """
    for layer, (gate_label, gate) in enumerate(layers["W_gates"]):
        rank = len(gate.shape)
        has_experts = rank == _EXPERTS_RANK
        for row in OPERANDS:
            if row.name not in layers:
                continue
            label, value = layers[row.name][layer]
            if row.needs_experts:
                if value is not None and not has_experts:
                    raise ValueError(
                        f"{label}: expected None, because {gate_label} of shape "
                        f"{list(gate.shape)} has no experts, got an array"
                    )
            elif value is not None and (len(value.shape) == _EXPERTS_RANK) != has_experts:
                layout = row.of_experts if has_experts else row.layout
                assert layout is not None
                raise ValueError(
                    f"{label}: expected {layout.text}, because {gate_label} has {rank} dimensions, "
                    f"got {len(value.shape)} dimensions: {list(value.shape)}"
                )
        if not has_experts:
            continue
        label, router = layers["W_routers"][layer]
        if router is None:
            raise TypeError(
                f"{label}: expected an array {BY_NAME['W_routers'].layout.text}, because "
                f"{gate_label} has experts, got None"
            )
        shared = [layers[name][layer] for name in _SHARED]
        given = [label for label, value in shared if value is not None]
        missing = [label for label, value in shared if value is None]
        if given and missing:
            raise TypeError(f"{missing[0]}: expected an array beside {given[0]}, got None")


def check_expert_options(layers: Layers, dimensions: Dimensions, routing: RoutingOptions) -> None:
    """Checks the options against the sizes, and that the ranks hold all experts together.

    Raises:
      TypeError: `experts_per_token` is missing.
      ValueError: it is out of range, or there are no experts; ranks do not hold all experts;
        `bias_selections` with a routing that has none.
    """
    D, count = dimensions, routing.experts_per_token
    if not D.E:
        if count is not None:
            raise ValueError(
                f"experts_per_token: expected None, because no layer has experts (W_gates of three "
                f"axes), got {count}"
            )
        return
    if count is None:
        raise TypeError(
            f"experts_per_token: expected an integer in 1..E = {D.E} (W_routers), got None"
        )
    if count > D.E:
        raise ValueError(
            f"experts_per_token: expected an integer in 1..E = {D.E} (W_routers), got {count}"
        )
    if D.I_expert < 1:
        raise ValueError("W_gates: expected I_expert >= 1 in [E_held, H, I_expert], got 0")
    ranks = routing.ranks
    if D.E_held != D.E and D.E_held * ranks != D.E:
        by_expert = f" or E / ranks = {D.E} / {ranks} = {D.E / ranks:g}" if ranks > 1 else ""
        raise ValueError(
            f"W_gates: expected E_held = E = {D.E} (W_routers){by_expert} in [E_held, H, "
            f"I_expert], got E_held = {D.E_held}"
        )
    if routing.routing != "sigmoid_topk":
        for label, value in layers["bias_selections"]:
            if value is not None:
                raise ValueError(
                    f'{label}: expected None with routing "{routing.routing}" (only '
                    '"sigmoid_topk" takes it), got an array'
                )
