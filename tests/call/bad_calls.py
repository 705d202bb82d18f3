"""Calls with one fault each, and what the message about it holds: argument, expected, actual.

Sizes of the good call: B 2, S 2, H 128, I 256, q 4, k 2, d 64, S_ctx 20, S_max 24, two layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_tkg
from tests import cases

SHAPE = cases.Shape(B=2, S=2, q=4, k=2, d=64, H=128, I=256, L=2, S_ctx=20, S_max=24)
Change = Callable[[dict[str, Any]], None]


def good(shape: cases.Shape = SHAPE) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    return {**arguments, **cases.options(shape)}


def put(name: str, value: Any) -> Change:
    """Puts `value` in the argument's place."""
    return lambda arguments: arguments.update({name: value})


def put_layer(name: str, value: Any, layer: int = 1) -> Change:
    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = list(arguments[name])
        arguments[name][layer] = value

    return change


def of(name: str, change: Callable[[Any], Any]) -> Change:
    """Replaces the argument by a function of it."""
    return lambda arguments: arguments.update({name: change(arguments[name])})


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def both(*changes: Change) -> Change:
    def change(arguments: dict[str, Any]) -> None:
        for one in changes:
            one(arguments)

    return change


def head(**changes: Any) -> Change:
    """Gives the call a head of 50 tokens, and changes its arguments."""
    good_head = {
        "W_gamma_final": zeros(1, 128),
        "W_head": zeros(128, 50),
        "candidates_per_token": 4,
    }
    return lambda arguments: arguments.update({**good_head, **changes})


FLOAT8 = np.dtype(jnp.float8_e4m3)

SHAPES: dict[str, tuple[Change, list[str]]] = {
    # name: (change, what the message holds: argument, expected, actual)
    "W_head_rank": (head(W_head=zeros(128)), ["W_head:", "[H, V]", "2 dimensions", "[128]"]),
    "W_head_rows": (
        head(W_head=zeros(50, 128)),
        ["W_head:", "[H, V] = [128, 128]", "[50, 128]"],
    ),
    "W_gamma_final": (
        head(W_gamma_final=zeros(128, 1)),
        ["W_gamma_final:", "[1, H] = [1, 128]", "[128, 1]"],
    ),
    "head_of_no_tokens": (head(W_head=zeros(128, 0)), ["candidates_per_token:", "V = 0", "4"]),
    "candidates_per_token": (
        head(candidates_per_token=51),
        ["candidates_per_token:", "1..V = 50 (W_head)", "51"],
    ),
    "candidates_without_head": (
        put("candidates_per_token", 4),
        ["candidates_per_token:", "None without W_head", "4"],
    ),
    "X_rank": (put("X", zeros(2, 128)), ["X:", "[B, S, H]", "3 dimensions", "[2, 128]"]),
    "W_gates_rank": (put_layer("W_gates", zeros(128), 0), ["W_gates[0]", "[H, I]", "[128]"]),
    "S_ctx_over_S_max": (
        put("mask_cache", zeros(25, 2, 4, 2, dtype=np.bool_)),
        ["mask_cache:", "S_ctx <= S_max = 24", "S_ctx = 25"],
    ),
    "unified_mask_too_short": (
        both(put("mask_cache", zeros(1, 2, 4, 2, dtype=np.bool_)), put("mask_active", None)),
        ["mask_cache:", "S_ctx >= S = 2", "S_ctx = 1"],
    ),
    "context_lengths_beside_a_mask": (
        put("context_lengths", zeros(2, dtype=np.int32)),
        ["context_lengths:", "None beside mask_cache", "array"],
    ),
    "context_starts_alone": (
        put("context_starts", zeros(2, dtype=np.int32)),
        ["context_starts:", "None without context_lengths", "array"],
    ),
    "context_bucket_beside_a_mask": (
        put("context_bucket", 8),
        ["context_bucket:", "mask_cache", "S_ctx = 20", "got 8"],
    ),
    "context_lengths_batch": (
        both(put("mask_cache", None), put("context_lengths", zeros(3, dtype=np.int32))),
        ["context_lengths:", "[B] or [B, S] = [2] or [2, 2]", "[3]"],
    ),
    "context_lengths_rank": (
        both(put("mask_cache", None), put("context_lengths", zeros(2, 2, 1, dtype=np.int32))),
        ["context_lengths:", "1 or 2 dimensions", "[2, 2, 1]"],
    ),
    "context_bucket_over_S_max": (
        both(
            both(put("mask_cache", None), put("context_lengths", zeros(2, dtype=np.int32))),
            put("context_bucket", 25),
        ),
        ["context_bucket:", "S_ctx <= S_max = 24", "S_ctx = 25"],
    ),
    "context_bucket_zero": (put("context_bucket", 0), ["context_bucket:", "at least 1", "0"]),
    "mask_cache_rank": (
        put("mask_cache", zeros(20, 2, 4, dtype=np.bool_)),
        ["mask_cache:", "4", "[20, 2, 4]"],
    ),
    "mask_cache_batch": (
        put("mask_cache", zeros(20, 3, 4, 2, dtype=np.bool_)),
        ["mask_cache:", "[20, 2, 4, 2]", "[20, 3, 4, 2]"],
    ),
    "mask_active": (
        put("mask_active", zeros(2, 2, 4, 3, dtype=np.bool_)),
        ["mask_active:", "[S, B, q, S]", "[2, 2, 4, 2]", "[2, 2, 4, 3]"],
    ),
    "W_qkvs": (
        put_layer("W_qkvs", zeros(128, 500)),
        ["W_qkvs[1]:", "[H, (q + 2k)*d] = [128, (4 + 2*2)*64]", "[128, 512]", "[128, 500]"],
    ),
    "W_outs": (
        put_layer("W_outs", zeros(128, 256), 0),
        ["W_outs[0]:", "[q*d, H] = [4*64, 128]", "[256, 128]", "[128, 256]"],
    ),
    "W_gates": (put_layer("W_gates", zeros(128, 384)), ["W_gates[1]", "[128, 256]", "[128, 384]"]),
    "W_ups": (put_layer("W_ups", zeros(256, 128)), ["W_ups[1]", "[128, 256]", "[256, 128]"]),
    "W_downs": (put_layer("W_downs", zeros(128, 256)), ["W_downs[1]", "[256, 128]", "[128, 256]"]),
    "W_gamma_qkvs": (
        put_layer("W_gamma_qkvs", zeros(128)),
        ["W_gamma_qkvs[1]", "2 dimensions", "[1, H]", "[128]"],
    ),
    "W_gamma_mlps": (
        put_layer("W_gamma_mlps", zeros(1, 64)),
        ["W_gamma_mlps[1]", "[1, 128]", "[1, 64]"],
    ),
    "K_caches": (
        put_layer("K_caches", zeros(2, 2, 64, 23)),
        ["K_caches[1]", "[B, k, d, S_max] = [2, 2, 64, 24]", "[2, 2, 64, 23]"],
    ),
    "K_caches_rank": (put_layer("K_caches", zeros(2, 24), 0), ["K_caches[0]", "4 or 3", "[2, 24]"]),
    "V_caches": (
        put_layer("V_caches", zeros(2, 2, 64, 24), 0),
        ["V_caches[0]", "[B, k, S_max, d] = [2, 2, 24, 64]", "[2, 2, 64, 24]"],
    ),
    "RoPE_cos": (put("RoPE_cos", zeros(64, 2, 2)), ["RoPE_cos:", "[32, 2, 2]", "[64, 2, 2]"]),
    "RoPE_sin": (put("RoPE_sin", zeros(32, 2, 1)), ["RoPE_sin:", "[32, 2, 2]", "[32, 2, 1]"]),
    "position_ids": (
        put("position_ids", zeros(2, dtype=np.int32)),
        ["position_ids:", "[B, 1] or [B, S]", "[B, 1] or [B, S]", "got 1: [2]"],
    ),
    "W_gate_scales": (
        both(
            put("W_gates", [zeros(128, 256, dtype=FLOAT8)] * 2),
            put("W_gate_scales", [zeros(128, 128)] * 2),
        ),
        ["W_gate_scales[0]", "[128, 256] or [1, 256]", "[128, 128]"],
    ),
    "W_down_scales": (
        both(
            put("W_downs", [zeros(256, 128, dtype=FLOAT8)] * 2),
            put("W_down_scales", [zeros(1, 128), zeros(128)]),
        ),
        ["W_down_scales[1]", "2 or 3 dimensions", "[128, H] or [1, H]", "got 1: [128]"],
    ),
    "bias_qkvs": (
        put("bias_qkvs", [zeros(1, 512), zeros(1, 256)]),
        ["bias_qkvs[1]:", "[1, (q + 2k)*d] = [1, (4 + 2*2)*64] = [1, 512]", "[1, 256]"],
    ),
    "bias_outs_rank": (
        put("bias_outs", [zeros(128)] * 2),
        ["bias_outs[0]:", "2 dimensions", "[1, H]", "[128]"],
    ),
    "W_gamma_qs": (
        put("W_gamma_qs", [zeros(1, 256)] * 2),
        ["W_gamma_qs[0]:", "[1, d] = [1, 64]", "[1, 256]"],
    ),
    "W_gamma_post_mlps": (
        put("W_gamma_post_mlps", zeros(2, 1, 64)),
        ["W_gamma_post_mlps (one layer):", "[1, H] = [1, 128]", "[1, 64]"],
    ),
    "sinks": (
        put("sinks", [None, zeros(4, 1)]),
        ["sinks[1]:", "[1, q] = [1, 4]", "[4, 1]"],
    ),
    "stacked_layer": (
        put("W_outs", zeros(2, 128, 256)),
        ["W_outs (one layer)", "[256, 128]", "[128, 256]"],
    ),
}

VALUES: dict[str, tuple[Change, list[str]]] = {
    "too_few_layers": (
        of("W_ups", lambda layers: layers[:1]),
        ["W_ups:", "num_layers = 2", "got 1"],
    ),
    "too_few_stacked_layers": (
        of("W_ups", lambda layers: np.stack(layers[:1])),
        ["W_ups:", "num_layers = 2", "got 1"],
    ),
    "too_few_scales": (put("W_up_scales", [None]), ["W_up_scales:", "num_layers = 2", "got 1"]),
    "empty_list": (put("V_caches", []), ["V_caches:", "num_layers = 2", "got 0"]),
    "one_cache_stacked": (
        of("V_caches", np.stack),
        ["V_caches:", "K_caches", "a sequence of arrays", "one stacked array"],
    ),
    "no_layers": (put("num_layers", 0), ["num_layers:", "at least 1", "got 0"]),
    "negative_eps": (put("eps", -1e-6), ["eps:", ">= 0", "-1e-06"]),
    "eps_not_finite": (put("eps", float("nan")), ["eps:", "finite", "nan"]),
    "negative_clamp": (put("clamp_bound", -1.0), ["clamp_bound:", ">= 0", "-1.0"]),
    "clamp_not_finite": (put("clamp_bound", float("inf")), ["clamp_bound:", "finite", "inf"]),
    "lnc": (put("lnc", 3), ["lnc:", "1, 2 or None", "got 3"]),
    "implementation": (
        put("implementation", "cuda"),
        ["implementation:", "'auto'", "'reference'", "got 'cuda'"],
    ),
    "too_few_sinks": (put("sinks", [None]), ["sinks:", "num_layers = 2", "got 1"]),
    "no_candidates": (
        head(candidates_per_token=0),
        ["candidates_per_token:", "at least 1", "got 0"],
    ),
    "no_logit_scale": (head(logit_scale=0.0), ["logit_scale:", "at least 1.18e-38", "0.0"]),
    "negative_logit_scale": (head(logit_scale=-1.0), ["logit_scale:", ">= 0", "-1.0"]),
    "logit_softcap": (head(logit_softcap=float("nan")), ["logit_softcap:", "finite", "nan"]),
    "negative_logit_softcap": (head(logit_softcap=-30.0), ["logit_softcap:", ">= 0", "-30.0"]),
    "no_softmax_scale": (put("softmax_scale", 0.0), ["softmax_scale:", "at least 1.18e-38", "0.0"]),
    "negative_softmax_scale": (put("softmax_scale", -1.0), ["softmax_scale:", ">= 0", "-1.0"]),
    "attention_softcap": (
        put("attention_softcap", float("inf")),
        ["attention_softcap:", "finite", "inf"],
    ),
    "vanishing_softcap": (
        put("attention_softcap", 1e-40),
        ["attention_softcap:", "at least 1.18e-38", "1e-40"],
    ),
    "activation": (
        put("activation", "relu"),
        ["activation:", "'silu', 'gelu_tanh', 'gelu', 'relu2'", "got 'relu'"],
    ),
    "scale_without_float8_weight": (
        put("W_up_scales", [None, zeros(1, 256)]),
        ["W_up_scales[1]:", "expected None", "W_ups[1] has dtype float32", "[1, 256]"],
    ),
    "float8_weight_without_scales": (
        put("W_gates", [zeros(128, 256, dtype=FLOAT8)] * 2),
        ["W_gate_scales", "a scale for W_gates[0]", "float8_e4m3", "None"],
    ),
    "float8_layer_without_scale": (
        both(
            put("W_downs", [zeros(256, 128, dtype=FLOAT8)] * 2),
            put("W_down_scales", [zeros(1, 128), None]),
        ),
        ["W_down_scales[1]", "a scale for W_downs[1]", "float8_e4m3", "None"],
    ),
    "unknown_axis": (put("axis_name", "tp"), ["axis_name:", "jax.shard_map", "none", "'tp'"]),
    "group_outside_of_a_mesh": (
        put("replica_groups", [[0, 1]]),
        ["replica_groups:", "0..0", "1 device", "unknown [1]"],
    ),
}

TYPES: dict[str, tuple[Change, list[str]]] = {
    "X_dtype": (
        of("X", lambda X: X.astype(np.int32)),
        ["X:", "bfloat16 or float16 or float32", "int32"],
    ),
    "X_byte_order": (
        of("X", lambda X: np.asarray(X).astype(">f4")),
        ["X:", "the machine's byte order", "'>f4'"],
    ),
    "position_ids_byte_order": (
        put("position_ids", zeros(2, 1, dtype=">i4")),
        ["position_ids:", "the machine's byte order", "'>i4'"],
    ),
    "X_none": (put("X", None), ["X:", "array", "None"]),
    "X_list": (of("X", lambda X: X.tolist()), ["X:", "array", "list"]),
    "W_qkvs_dtype": (
        put_layer("W_qkvs", zeros(128, 512, dtype=np.float16)),
        ["W_qkvs[1]:", "float32", "float16"],
    ),
    "W_head_dtype": (head(W_head=zeros(128, 50, dtype=np.int8)), ["W_head:", "float32", "int8"]),
    "W_head_float8": (
        head(W_head=zeros(128, 50, dtype=FLOAT8)),
        ["W_head:", "float32", "float8_e4m3"],
    ),
    "W_head_of_layers": (head(W_head=[zeros(128, 50)] * 2), ["W_head:", "array", "list"]),
    "W_gamma_final_dtype": (
        head(W_gamma_final=zeros(1, 128, dtype=np.int32)),
        ["W_gamma_final:", "bfloat16 or float16 or float32", "int32"],
    ),
    "W_gamma_final_missing": (head(W_gamma_final=None), ["W_gamma_final:", "W_head", "None"]),
    "candidates_missing": (
        head(candidates_per_token=None),
        ["candidates_per_token:", "1..V = 50", "None"],
    ),
    "candidates_bool": (
        head(candidates_per_token=True),
        ["candidates_per_token:", "integer", "True"],
    ),
    "candidates_float": (
        head(candidates_per_token=2.0),
        ["candidates_per_token:", "integer", "2.0"],
    ),
    "logit_scale": (head(logit_scale="2"), ["logit_scale:", "Python number", "'2'"]),
    "logit_softcap": (head(logit_softcap=None), ["logit_softcap:", "Python number", "None"]),
    "W_outs_float8": (
        put("W_outs", [zeros(256, 128, dtype=FLOAT8)] * 2),
        ["W_outs[0]:", "float32", "float8_e4m3"],
    ),
    "W_gates_dtype": (
        put("W_gates", [zeros(128, 256, dtype=np.int8)] * 2),
        ["W_gates[0]:", "float32 or float8_e4m3 or float8_e4m3fn or float8_e5m2", "int8"],
    ),
    "K_caches_dtype": (
        put("K_caches", [zeros(2, 2, 64, 24, dtype=np.float16)] * 2),
        ["K_caches[0]:", "float32", "float16"],
    ),
    "RoPE_cos_dtype": (
        put("RoPE_cos", zeros(32, 2, 2, dtype=np.int32)),
        ["RoPE_cos:", "float32", "int32"],
    ),
    "W_gamma_dtype": (
        put("W_gamma_mlps", [zeros(1, 128, dtype=np.int32)] * 2),
        ["W_gamma_mlps[0]:", "bfloat16 or float16 or float32", "int32"],
    ),
    "position_ids_dtype": (
        put("position_ids", zeros(2, 1)),
        ["position_ids:", "integer", "float32"],
    ),
    "scale_dtype": (
        both(
            put("W_gates", [zeros(128, 256, dtype=FLOAT8)] * 2),
            put("W_gate_scales", [zeros(1, 256, dtype=np.float16)] * 2),
        ),
        ["W_gate_scales[0]:", "float32", "float16"],
    ),
    "sinks_dtype": (
        put("sinks", [zeros(1, 4, dtype=np.float16)] * 2),
        ["sinks[0]:", "float32", "float16"],
    ),
    "bias_dtype": (
        put("bias_outs", [zeros(1, 128, dtype=np.int32)] * 2),
        ["bias_outs[0]:", "bfloat16 or float16 or float32", "int32"],
    ),
    "softmax_scale": (
        put("softmax_scale", np.ones(2)),
        ["softmax_scale:", "Python number", "array"],
    ),
    "missing_weights": (put("W_downs", None), ["W_downs:", "sequence of arrays", "None"]),
    "missing_layer": (put_layer("W_downs", None), ["W_downs[1]:", "array", "None"]),
    "layer_no_array": (put_layer("W_ups", [1.0]), ["W_ups[1]:", "array", "list"]),
    "no_sequence": (put("W_ups", 3.0), ["W_ups:", "sequence of arrays", "float"]),
    "missing_masks": (
        put("mask_cache", None),
        ["mask_cache:", "an array, or context_lengths", "None"],
    ),
    "context_lengths_dtype": (
        both(put("mask_cache", None), put("context_lengths", zeros(2))),
        ["context_lengths:", "integer", "float32"],
    ),
    "context_bucket_dtype": (put("context_bucket", 2.5), ["context_bucket:", "integer", "2.5"]),
    "context_bucket_of_kinds": (
        put("context_bucket", (8, 8)),
        ["context_bucket:", "needs layer_kinds", "(8, 8)"],
    ),
    "num_layers": (put("num_layers", 2.0), ["num_layers:", "integer", "2.0"]),
    "num_layers_bool": (put("num_layers", True), ["num_layers:", "integer", "True"]),
    "eps": (put("eps", "1e-6"), ["eps:", "Python number", "'1e-6'"]),
    "eps_array": (put("eps", np.ones(2)), ["eps:", "Python number", "array"]),
    "clamp_bound": (put("clamp_bound", None), ["clamp_bound:", "Python number", "None"]),
    "axis_name": (put("axis_name", 3), ["axis_name:", "string", "3"]),
    "axis_name_entry": (put("axis_name", ("tp", 3)), ["axis_name:", "string", "3"]),
    "replica_groups": (
        put("replica_groups", [0, 1]),
        ["replica_groups:", "list of lists of ranks", "[0, 1]"],
    ),
    "replica_groups_entry": (
        put("replica_groups", [[0.5]]),
        ["replica_groups:", "list of lists of ranks", "[[0.5]]"],
    ),
}


LIMITS: dict[str, tuple[dict[str, Any], list[str]]] = {
    # name: (sizes of an otherwise consistent call, what the message holds)
    "no_sequences": ({"B": 0}, ["X:", "B >= 1", "B = 0"]),
    "too_many_tokens": ({"S": 9}, ["X:", "1 <= S <= 8", "S = 9"]),
    "no_tokens": ({"S": 0}, ["X:", "1 <= S <= 8", "S = 0"]),
    "no_H": ({"H": 0}, ["X:", "H >= 1", "H = 0"]),
    "no_I": ({"I": 0}, ["W_gates:", "I >= 1", "I = 0"]),
    "large_d": ({"d": 258}, ["K_caches:", "2..256", "d = 258"]),
    "q_not_of_k": (
        {"q": 3},
        ["mask_cache:", "q in [S_ctx, B, q, S]", "multiple of k = 2", "q = 3"],
    ),
    "no_query_heads": ({"q": 0}, ["mask_cache:", "k = 2", "q = 0"]),
    "no_slots": (
        {"S_max": 0, "S_ctx": 0},
        ["K_caches:", "S_max >= 1 in [B, k, d, S_max]", "S_max = 0"],
    ),
    "S_ctx_over_S_max": ({"S_ctx": 25}, ["mask_cache:", "S_ctx <= S_max = 24", "S_ctx = 25"]),
}

BLAME: dict[str, tuple[Change, list[str]]] = {
    # Several arrays may be wrong in the same way; the message names one of them, with its layout.
    "keys_in_the_layout_of_values": (
        of("K_caches", lambda caches: [np.swapaxes(cache, 2, 3) for cache in caches]),
        ["K_caches[0]:", "[B, k, d, S_max] = [2, 2, 64, 24]", "[2, 2, 24, 64]"],
    ),
    "values_in_the_layout_of_keys": (
        of("V_caches", lambda caches: [np.swapaxes(cache, 2, 3) for cache in caches]),
        ["V_caches[0]:", "[B, k, S_max, d] = [2, 2, 24, 64]", "[2, 2, 64, 24]"],
    ),
    "caches_with_heads_last": (
        both(
            of("K_caches", lambda caches: [np.transpose(cache, (0, 3, 1, 2)) for cache in caches]),
            of("V_caches", lambda caches: [np.swapaxes(cache, 1, 2) for cache in caches]),
        ),
        ["K_caches[0]:", "[B, k, d, S_max]", "[2, 24, 2, 64]"],
    ),
    "masks_over_kv_heads": (
        both(
            of("mask_cache", lambda mask: mask[:, :, :2]),
            of("mask_active", lambda mask: mask[:, :, :2]),
        ),
        ["mask_cache:", "[S_ctx, B, q, S] = [20, 2, 4, 2]", "[20, 2, 2, 2]"],
    ),
    "one_mask_over_kv_heads": (
        of("mask_active", lambda mask: mask[:, :, :2]),
        ["mask_active:", "[2, 2, 4, 2]", "[2, 2, 2, 2]"],
    ),
    "tables_of_whole_heads": (
        both(
            of("RoPE_cos", lambda table: np.tile(table, (2, 1, 1))),
            of("RoPE_sin", lambda table: np.tile(table, (2, 1, 1))),
        ),
        ["RoPE_cos:", "[d/2, B, S] = [64/2, 2, 2] = [32, 2, 2]", "[64, 2, 2]"],
    ),
    "transposed_projection": (
        of("W_qkvs", lambda layers: [layer.T for layer in layers]),
        ["W_qkvs[0]:", "[128, 512]", "[512, 128]"],
    ),
    "tokens_without_batch": (
        of("X", lambda X: np.swapaxes(np.concatenate([X, X[:, :1]], 1), 0, 1)),
        ["X:", "[2, 2, 128]", "[3, 2, 128]"],
    ),
}


class _Foreign:
    """An array of another library, such as PyTorch."""

    shape, dtype = (2, 2, 128), "torch.float32"


OPTION_TYPES: dict[str, tuple[Change, list[str]]] = {
    "lnc_bool": (put("lnc", True), ["lnc:", "integer 1 or 2", "True"]),
    "lnc_float": (put("lnc", 2.0), ["lnc:", "integer 1 or 2", "2.0"]),
    "eps_bool": (put("eps", True), ["eps:", "Python number", "True"]),
    "clamp_bool": (put("clamp_bound", False), ["clamp_bound:", "Python number", "False"]),
    "residual_flag": (put("sbuf_residual_and_cc", 1), ["sbuf_residual_and_cc:", "True", "1"]),
    "layers_per_launch": (put("layers_per_launch", True), ["layers_per_launch:", "integer"]),
    "float_mask": (
        put("mask_cache", zeros(20, 2, 4, 2)),
        ["mask_cache:", "boolean or integer", "no additive bias", "float32"],
    ),
    "additive_bias": (
        put("mask_active", np.full((2, 2, 4, 2), -1e9, np.float32)),
        ["mask_active:", "boolean or integer", "float32"],
    ),
    "foreign_array": (put("X", _Foreign()), ["X:", "JAX or NumPy", "_Foreign"]),
    "shape_only": (
        put("K_caches", [jax.ShapeDtypeStruct((2, 2, 64, 24), np.float32)] * 2),
        ["K_caches[0]:", "JAX or NumPy", "ShapeDtypeStruct"],
    ),
    "random_key": (
        put("position_ids", jax.random.split(jax.random.key(0), (2, 1))),
        ["position_ids:", "numbers", "key<fry>"],
    ),
    "bits_of_tokens": (
        of("X", lambda X: jax_tkg.bits.as_bits(jnp.asarray(X, jnp.bfloat16))),
        ["X:", "array", "Bits"],
    ),
}


def named(rows: dict[str, tuple[Change, list[str]]]) -> list[tuple[Any, ...]]:
    return [(name, *row) for name, row in rows.items()]
