"""The custom call that Neuron's compiler replaces by a compiled kernel, without a compiled kernel.

Target, operands, results and aliases are as NKI's own integration with JAX makes them, and so is
the config, field by field, in the form of NKI 0.6. Its `binary` is empty.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.call.arguments import PER_LAYER_CACHES, Operands
from jax_tkg.call.layer_kinds import LayerKinds
from jax_tkg.lowering.kernel_interface import Launch
from jax_tkg.reference.context_ranks import ContextRanks

TARGET = "AwsNeuronCustomNativeKernel"
"""Target of the custom call; from the NKI guide to custom operators."""

STATUS_RETURNING = 2
"""Its API version, API_VERSION_STATUS_RETURNING."""

CONFIG_VERSION = 1
"""NKI's version of the config's form."""

CANDIDATES = ("candidate_logits", "candidate_ids")
"""Results of a launch that is given a head, after the caches."""

ALIASED_INPUT_SUFFIX = ".must_alias_input"
"""What NKI appends to the name of an input that an output aliases; the output has the bare name."""


def kernel_config(
    function: str,
    names: Sequence[str],
    launch: Launch,
    cores: int,
    nc_version: int,
    mac_count: int,
) -> dict[str, Any]:
    """The custom call's config as NKI writes it, and what else a reader of a dry run asks for.

    Args:
      function: name of the kernel's function.
      names: of its inputs, in order.
      launch: its static arguments.
      cores: physical cores of the launch.
      nc_version: the number in NeuronCore-v<number> of the machine that is compiled for.
      mac_count: multiplications of the launch's matrix products.
    """
    caches = cache_names(names)
    candidates = CANDIDATES if "W_head" in names else ()
    return {
        "func_name": function,
        "platform_target": nc_version,
        "kernel_format": "bir",
        "kernel_version": CONFIG_VERSION,
        "klir_binary": {
            "binary": "",
            "input_names": [
                name + ALIASED_INPUT_SUFFIX if name in caches else name for name in names
            ],
            "output_names": ["hidden", *caches, *candidates],
            "version_identifier": "",
            "aliases": [list(pair) for pair in cache_aliases(names).items()],
        },
        "grid": cores,
        "has_collectives": launch.replica_groups is not None,
        "mac_count": mac_count,
        # Not NKI's: these are inside the compiled kernel.
        "replica_groups": launch.replica_groups,
        "num_layers": launch.num_layers,
    }


def cache_names(names: Sequence[str]) -> list[str]:
    """The inputs that the kernel returns updated, in the order of its results."""
    return [name for name in names if name.startswith(PER_LAYER_CACHES)]


def cache_aliases(names: Sequence[str]) -> dict[int, int]:
    """The number of the result that aliases each cache, by the cache's number among the inputs."""
    return {names.index(name): 1 + index for index, name in enumerate(cache_names(names))}


def multiplications(operands: Operands, launch: Launch) -> int:
    """Multiplications of the matrix products of a launch's layers, as the operation defines them.

    NKI counts those of the kernel's instructions, transposes included.
    """
    parameters = launch.parameters
    kinds = LayerKinds.of(parameters.layer_kinds, parameters.num_layers)
    of_layers = kinds.of_layers[launch.first_layer : launch.first_layer + launch.num_layers]
    total = 0
    for kind in range(kinds.count):
        own = operands.of_kind(kind, kinds)
        # Ranks that share out a context attend a part of it each, with the heads of all.
        D = ContextRanks.of(parameters).dimensions(own, parameters.bucket_of_kind(kind))
        tokens = D.B * D.S
        weights = D.H * D.qkv_columns + D.q * D.d * D.H + 3 * D.H * D.I
        unified = own.mask_cache is not None and own.mask_active is None
        attended = D.S_ctx + (0 if unified else D.S)
        total += of_layers.count(kind) * tokens * (weights + 2 * D.q * D.d * attended)
    if launch.first_layer + launch.num_layers == parameters.num_layers:
        # The head, if there is one.
        total += tokens * D.H * D.V
    return total


def described_call(
    names: Sequence[str],
    values: Sequence[Any],
    config: dict[str, Any],
    candidates_per_token: int | None = None,
) -> Any:
    """The custom call with a config that names no compiled kernel.

    Args:
      names: of the kernel's inputs.
      values: the inputs.
      config: of `kernel_config`.
      candidates_per_token: of a launch that is given a head.

    Returns:
      The hidden states, the updated caches in the order of `names`, and candidates.
    """
    results = [values[0], *(values[names.index(name)] for name in cache_names(names))]
    shapes = [jax.ShapeDtypeStruct(result.shape, result.dtype) for result in results]
    if "W_head" in names:
        shape = (*values[0].shape[:2], candidates_per_token)
        shapes += [jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, jnp.int32)]
    call = jax.ffi.ffi_call(
        TARGET,
        shapes,
        custom_call_api_version=STATUS_RETURNING,
        legacy_backend_config=base64.b64encode(json.dumps(config).encode()).decode(),
        input_output_aliases=cache_aliases(names),
    )
    return tuple(call(*values))
