"""Reading the Neuron custom calls of a lowered program."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from jaxlib.mlir.dialects import stablehlo

from jax_tkg.lowering import custom_call


def calls(lowered: Any) -> list[Any]:
    """The Neuron custom calls of a lowered program, which must outlive them."""
    module = lowered.compiler_ir("stablehlo")
    return [
        operation
        for operation in _operations(module.operation)
        if operation.name == "stablehlo.custom_call"
        and custom_call.TARGET in str(operation.attributes["call_target_name"])
    ]


def _operations(operation: Any) -> Iterator[Any]:
    yield operation
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _operations(inner.operation)


def config(call: Any) -> dict[str, Any]:
    """The decoded config of a custom call."""
    text = str(call.attributes["backend_config"]).strip('"')
    return json.loads(base64.b64decode(text))


def aliases(call: Any) -> list[tuple[int, int]]:
    """(result, operand) of every alias."""
    pairs = []
    for alias in call.attributes["output_operand_aliases"]:
        typed = stablehlo.OutputOperandAlias(alias)
        pairs.append((typed.output_tuple_indices[0], typed.operand_index))
    return pairs


def has_collectives(call: Any) -> bool:
    """Whether the frontend attribute says so."""
    if "mhlo.frontend_attributes" not in call.attributes:
        return False
    return 'has_collectives = "1"' in str(call.attributes["mhlo.frontend_attributes"])
