"""AWS's kernel library: where it is found, and what its release of `transformer_tkg` takes.

The signature changed with SDK 2.30: `mask_cache` and `mask_active` became one `attention_mask`.
SDK 2.31 added `dtype_mode`. The installed source is read but not imported, because it imports nki.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import sys

from jax_tkg.lowering.kernel_interface import KERNEL_FUNCTION
from jax_tkg.lowering.source_signature import signature_in

CHECKOUT_VARIABLE = "NKILIB"
"""Environment variable that names a checkout of aws-neuron/nki-library."""

_MODULE = "experimental.transformer.transformer_tkg"
_ATTENTION_BLOCK = "attention_block_tkg.py"

_START_SLOTS = "kv_cache_update_idx.shape == (B, 1)"
"""The assertion by which the attention block takes one slot for each sequence."""


def find_module() -> str:
    """Name of the module that has AWS's kernel. A checkout's source is put on the path.

    Raises:
      ValueError: there is no checkout and no installed library.
    """
    name, root = _find_package()
    if not name.startswith("nkilib."):
        source = str(root.parents[1])
        if source not in sys.path:
            sys.path.append(source)
    return name


def _find_package() -> tuple[str, pathlib.Path]:
    """Name of the kernel's module, and the folder of the package nkilib."""
    named = os.environ.get(CHECKOUT_VARIABLE)
    if not named:
        # The compiler bundles the library under this name.
        specification = importlib.util.find_spec("nkilib")
        if specification is not None:
            folders = specification.submodule_search_locations or ["."]
            return f"nkilib.{_MODULE}", pathlib.Path(next(iter(folders)))
        raise ValueError(
            "implementation: expected AWS's kernel library for 'nkilib' (a checkout of "
            f"aws-neuron/nki-library that {CHECKOUT_VARIABLE} names, or the nkilib of an installed "
            "Neuron compiler), got neither"
        )
    package = pathlib.Path(named).resolve() / "src" / "nkilib_src" / "nkilib"
    if not package.is_dir():
        raise ValueError(
            f"implementation: expected {CHECKOUT_VARIABLE} to name a checkout of "
            f"aws-neuron/nki-library for 'nkilib', got {named!r}, which has no "
            "src/nkilib_src/nkilib"
        )
    return f"nkilib_src.nkilib.{_MODULE}", package


@dataclasses.dataclass(frozen=True)
class Release:
    """What a release of AWS's `transformer_tkg` takes.

    Attributes:
      joint_mask: one `attention_mask`, in place of `mask_cache` and `mask_active`.
      selects_float8: `dtype_mode`, which says which float8_e4m3 the weights have.
      token_slots: `position_ids` is [B, S], a slot for each token. Otherwise it is [B, 1], the slot
        of each sequence's first token.
    """

    joint_mask: bool
    selects_float8: bool
    token_slots: bool


NEWEST = Release(joint_mask=True, selects_float8=True, token_slots=False)
"""SDK 2.31 and 2.32."""

_KNOWN = frozenset(
    {
        "X",
        *("W_qkvs", "W_outs", "W_gates", "W_ups", "W_downs", "W_gamma_qkvs", "W_gamma_mlps"),
        *("W_gate_scales", "W_up_scales", "W_down_scales"),
        *("K_caches", "V_caches", "RoPE_cos", "RoPE_sin"),
        *("mask_cache", "mask_active", "attention_mask", "position_ids"),
        *("num_layers", "eps", "replica_groups", "sbuf_residual_and_cc", "clamp_bound"),
        "dtype_mode",
    }
)
"""Parameters of the signatures that are known here."""


def installed_release() -> Release:
    """Reads the signature of the library that `find_module` finds.

    Raises:
      ValueError: there is no library, or its function has parameters without a default that are
        not known here.
    """
    name, root = _find_package()
    path = root.joinpath(*_MODULE.split(".")).with_suffix(".py")
    if not path.is_file():
        raise ValueError(
            f"implementation: expected the source of {name} for 'nkilib', got no file {path}"
        )
    signature = signature_in(path, KERNEL_FUNCTION)
    if signature is None:
        raise ValueError(
            f"implementation: expected a function {KERNEL_FUNCTION} for 'nkilib', got none in "
            f"{path}"
        )
    unknown = [name for name in signature.required if name not in _KNOWN]
    if unknown:
        raise ValueError(
            f"implementation: expected a known signature of {KERNEL_FUNCTION} for 'nkilib', got "
            f"one that needs {', '.join(unknown)} too, in {path}"
        )
    joint = "attention_mask" in signature.names
    return Release(
        joint_mask=joint,
        selects_float8="dtype_mode" in signature.names,
        token_slots=joint and not _asserts_start_slots(path.with_name(_ATTENTION_BLOCK)),
    )


def _asserts_start_slots(attention_block: pathlib.Path) -> bool:
    """Whether the attention block wants [B, 1] slots for caches without pages.

    `transformer_tkg` documents [B, S] from SDK 2.30 on, but hands `position_ids` to a block that
    asserts [B, 1] in 2.30 and 2.31.
    """
    return attention_block.is_file() and _START_SLOTS in attention_block.read_text()
