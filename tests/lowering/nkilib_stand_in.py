"""A library with the signature of SDK 2.31: what it gets goes to the oracle, in float64.

The body runs in the simulator, reads the kernel's tensors as NumPy arrays, and writes the oracle's
results back, so that a tensor or static argument that came in another form gives other results.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from jax_tkg.lowering import nkilib_release

SOURCE = """
import enum

import ml_dtypes
import nki.isa as nisa
import nki.language as nl
import numpy as np

from tests import oracle


class DtypeMode(enum.Enum):
    AUTO = 0
    NON_OCP = 1
    OCP = 2


MLP_WEIGHTS = ("W_gates", "W_ups", "W_downs")


def transformer_tkg(
    X,
    W_qkvs,
    W_outs,
    W_gates,
    W_ups,
    W_downs,
    W_gamma_qkvs,
    W_gamma_mlps,
    K_caches,
    V_caches,
    RoPE_cos,
    RoPE_sin,
    attention_mask,
    position_ids,
    num_layers,
    eps=1e-6,
    replica_groups=None,
    sbuf_residual_and_cc=False,
    clamp_bound=0.0,
    W_gate_scales=None,
    W_up_scales=None,
    W_down_scales=None,
    dtype_mode=DtypeMode.NON_OCP,
):
    global on_chip
    on_chip = sbuf_residual_and_cc
    B, S, H = X.shape
    assert len(W_qkvs) == num_layers and replica_groups is None and clamp_bound == 0.0
    assert attention_mask.dtype == "uint8" and attention_mask.shape[1::2] == (B, S)
    assert attention_mask.shape[0] <= K_caches[0].shape[-1]
    assert position_ids.dtype == "uint32" and position_ids.shape == (B, SLOTS)
    formats = {weight.dtype for weight in (*W_gates, *W_ups, *W_downs)}
    if "float8_e4m3fn" in formats:
        assert dtype_mode is DtypeMode.OCP and "float8_e4m3" not in formats
    else:
        assert dtype_mode is DtypeMode.NON_OCP
    if W_gate_scales is not None:
        assert all(scale is None or scale.shape[0] == 128 for scale in W_gate_scales)

    def arrays(tensors):
        return None if tensors is None else [None if t is None else t.numpy() for t in tensors]

    rank = oracle.Rank(
        W_qkvs=arrays(W_qkvs),
        W_outs=arrays(W_outs),
        W_gates=arrays(W_gates),
        W_ups=arrays(W_ups),
        W_downs=arrays(W_downs),
        K_caches=arrays(K_caches),
        V_caches=arrays(V_caches),
        mask_cache=attention_mask.numpy(),
        mask_active=None,
        W_gate_scales=arrays(W_gate_scales),
        W_up_scales=arrays(W_up_scales),
        W_down_scales=arrays(W_down_scales),
    )
    hidden, (keys,), (values,), _ = oracle.transformer_tkg(
        X.numpy(),
        [rank],
        W_gamma_qkvs=arrays(W_gamma_qkvs),
        W_gamma_mlps=arrays(W_gamma_mlps),
        RoPE_cos=RoPE_cos.numpy(),
        RoPE_sin=RoPE_sin.numpy(),
        position_ids=position_ids.numpy(),
        num_layers=num_layers,
        eps=eps,
        clamp_bound=clamp_bound,
    )
    dtype = X.numpy().dtype
    for cache, results in ((K_caches, keys), (V_caches, values)):
        for tensor, result in zip(cache, results):
            nisa.dma_copy(dst=tensor, src=nl.shared_constant(result.astype(dtype)))
    out = nl.ndarray(X.shape, dtype=X.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=nl.shared_constant(hidden.astype(dtype)))
    return out
"""

FIRST_SLOTS = "kv_cache_update_idx.shape == (B, 1)\n"
"""What an attention block that takes [B, 1] slots has in its source."""


@contextlib.contextmanager
def installed(slots: str) -> Iterator[Callable[[], Any]]:
    """NKILIB names a checkout with this library. Gives a function that gives its loaded module.

    Args:
      slots: "S" if it takes a slot for each token, "1" if it takes each sequence's first slot.
    """
    loaded = {name for name in sys.modules if name.split(".")[0] == "nkilib_src"}
    hidden = {name: sys.modules.pop(name) for name in loaded}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", {nkilib_release.CHECKOUT_VARIABLE: folder}),
        mock.patch("sys.path", [entry for entry in sys.path if not _has_nkilib(entry)]),
    ):
        package = pathlib.Path(folder) / "src/nkilib_src/nkilib/experimental/transformer"
        package.mkdir(parents=True)
        (package / "transformer_tkg.py").write_text(SOURCE.replace("SLOTS", slots))
        block = FIRST_SLOTS if slots == "1" else ""
        (package / "attention_block_tkg.py").write_text(block)
        try:
            yield lambda: sys.modules[nkilib_release.find_module()]
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] == "nkilib_src"]:
                del sys.modules[name]
            sys.modules.update(hidden)


def _has_nkilib(entry: str) -> bool:
    """Whether an entry of `sys.path` is a checkout's, as the tests of AWS's library leave one."""
    return (pathlib.Path(entry) / "nkilib_src").is_dir()
