"""Splits one call of the primitive into launches of the kernel, each with all layers or a few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax_tkg.call.arguments import PER_LAYER, PER_LAYER_CACHES, Operands, Parameters, is_stacked
from jax_tkg.call.layer_kinds import KindStacks, LayerKinds
from jax_tkg.call.operand_table import HEAD_KINDS, OPERANDS
from jax_tkg.lowering.kernel_interface import MEGAKERNEL, KernelInterface, Launch
from jax_tkg.lowering.kernel_limits import SpareSbuf, spare_sbuf
from jax_tkg.lowering.kernel_operands import OF_KINDS
from jax_tkg.reference.candidates import whole_vocabulary_ids

HEAD = tuple(row for row in OPERANDS if row.kind in HEAD_KINDS)
"""The operands of what follows the layers."""

RunLaunch = Callable[[dict[str, Any], Launch], tuple[Any, ...]]
"""Runs a kernel on its tensors by name. Returns hidden states, key caches and value caches, and
where it is given a head logits and columns of candidates."""


def run_launches(
    operands: Operands,
    parameters: Parameters,
    run: RunLaunch,
    kernel: KernelInterface = MEGAKERNEL,
) -> tuple[Any, ...]:
    """Runs all layers, a launch at a time.

    Args:
      operands: without `Bits`.
      parameters: the static parameters.
      run: runs one launch.
      kernel: the kernel that is launched.

    Returns:
      The results of `reference.transformer`.
    """
    total = parameters.num_layers
    step = parameters.layers_per_launch or total
    looped = launches_loop(operands, parameters, kernel)
    kinds = parameters.layer_kinds
    tensors = kernel.operands(operands, looped, kinds, parameters)
    groups = parameters.replica_groups
    if groups is not None and len(groups[0]) == 1:
        groups = None
    stacked = is_stacked(operands.K_caches)
    by_kind = isinstance(operands.K_caches, KindStacks)
    hidden = operands.X
    K_caches: Any = tensors["K_caches"] if stacked else ()
    V_caches: Any = tensors["V_caches"] if stacked else ()
    candidates: list[Any] = []
    spare = spare_sbuf(operands, parameters) if kernel is MEGAKERNEL else SpareSbuf()
    for first in range(0, total, step):
        count = min(step, total - first)
        given = {**tensors, "X": hidden}
        if stacked:
            given["K_caches"], given["V_caches"] = K_caches, V_caches
        for name, value in _layers(tensors, first, count).items():
            # Stacks for each kind are a tuple too, but not one of layers.
            if not (by_kind and name in PER_LAYER_CACHES):
                given[name] = value
        if first + count < total:
            # Only the last launch ends with the head.
            given.update({row.name: None for row in HEAD if row.name in given})
        if "expert_order" in given and given["W_routers"] is None:
            # A launch without layers of experts.
            given["expert_order"] = None
        if kinds is not None:
            used = set(kinds[first : first + count])
            names = (*OF_KINDS, *(PER_LAYER_CACHES if by_kind else ()))
            given.update({name: _only(given[name], used) for name in names})
        launch = Launch(
            parameters=parameters,
            replica_groups=groups,
            first_layer=first,
            num_layers=count,
            stacked_caches=stacked,
            looped=looped,
            caches_by_kind=by_kind,
            place_bytes=spare.place_bytes,
            held_buffers=spare.held_buffers,
        )
        hidden, K_updated, V_updated, *candidates = run(given, launch)
        if by_kind:
            K_caches, V_caches = _merged(K_caches, K_updated), _merged(V_caches, V_updated)
        elif stacked:
            K_caches, V_caches = K_updated, V_updated
        else:
            K_caches, V_caches = (*K_caches, *K_updated), (*V_caches, *V_updated)
    if candidates:
        logits, columns = candidates
        V = operands.W_head.shape[1]
        candidates = [logits, whole_vocabulary_ids(columns, V, parameters)]
    if by_kind:
        return hidden, KindStacks(K_caches), KindStacks(V_caches), *candidates
    return hidden, K_caches, V_caches, *candidates


def _only(entries: tuple[Any, ...], kinds: set[int]) -> tuple[Any, ...]:
    """The entries of some kinds, None in place of the others: a launch is not given those."""
    return tuple(entry if kind in kinds else None for kind, entry in enumerate(entries))


def _merged(stacks: tuple[Any, ...], updated: tuple[Any, ...]) -> tuple[Any, ...]:
    """The stacks of all kinds, with the updated ones, None for a kind without, in their places."""
    return tuple(old if new is None else new for old, new in zip(stacks, updated, strict=True))


def split_results(outputs: Sequence[Any], given: dict[str, Any], launch: Launch) -> Any:
    """What a kernel returns as hidden states, key caches and value caches.

    Args:
      outputs: one after the other.
      given: the launch's tensors by name.
      launch: the launch.

    Returns:
      The caches are in the form in which the launch was given them. Candidates follow, if it was
      given a head.
    """
    hidden, *caches = outputs
    candidates: list[Any] = []
    if given.get("W_head") is not None:
        caches, candidates = caches[:-2], caches[-2:]
    half = len(caches) // 2
    K_caches, V_caches = caches[:half], caches[half:]
    if launch.caches_by_kind:
        return (
            hidden,
            *(
                tuple(None if stack is None else entries.pop(0) for stack in given[name])
                for name, entries in zip(PER_LAYER_CACHES, (K_caches, V_caches), strict=True)
            ),
            *candidates,
        )
    if launch.stacked_caches:
        return hidden, K_caches[0], V_caches[0], *candidates
    return hidden, tuple(K_caches), tuple(V_caches), *candidates


def launches_loop(
    operands: Operands, parameters: Parameters, kernel: KernelInterface = MEGAKERNEL
) -> bool:
    """Whether the layers of a launch loop on the device.

    Args:
      operands: the call's arrays, or their abstract values.
      parameters: its static parameters.
      kernel: the kernel that is launched.
    """
    total, kinds = parameters.num_layers, parameters.layer_kinds
    layers = parameters.layers_per_launch or total
    if kinds is not None:
        launches = [kinds[first : first + layers] for first in range(0, total, layers)]
        if not any(len(LayerKinds(own).pattern) * 2 <= len(own) for own in launches):
            return False
    return layers > 1 and kernel.loops(operands)


def layer_tuples(tensors: dict[str, Any], launch: Launch) -> dict[str, Any]:
    """The tensors in the form that the kernel takes.

    The launch's layers of weights and scales are put into tuples. If the layers loop on the device,
    the kernel takes the whole stacked tensors.
    """
    if launch.looped:
        return tensors
    layers = range(launch.first_layer, launch.first_layer + launch.num_layers)
    return {
        name: tuple(value[index] for index in layers)
        if name in PER_LAYER and name not in PER_LAYER_CACHES and is_stacked(value)
        else value
        for name, value in tensors.items()
    }


def _layers(tensors: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    """The per-layer tensors of one launch. Stacked tensors are passed whole."""
    chosen = {}
    for name in PER_LAYER:
        value = tensors.get(name)
        if isinstance(value, tuple):
            value = value[first : first + count]
            # A launch without a quantized layer has no scales.
            chosen[name] = None if all(entry is None for entry in value) else value
    return chosen
