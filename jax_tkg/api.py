"""The public functions: a call is checked, then bound to the primitive, or explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jax_tkg.call.arguments import Operands, Parameters
from jax_tkg.call.canonical import run_checked
from jax_tkg.call.results import (
    TransformerTkgCandidates,
    TransformerTkgOutput,
    named_results,
)
from jax_tkg.call.signature import bind_arguments
from jax_tkg.lowering import primitive
from jax_tkg.lowering.choice import Choice, choose
from jax_tkg.lowering.choice import is_within_limits as is_within_limits
from jax_tkg.lowering.neuron import lower_for_neuron


def transformer_tkg(
    X: jax.Array,
    W_qkvs: Any,
    W_outs: Any,
    W_gates: Any,
    W_ups: Any,
    W_downs: Any,
    W_gamma_qkvs: Any,
    W_gamma_mlps: Any,
    K_caches: Any,
    V_caches: Any,
    RoPE_cos: Any,
    RoPE_sin: Any,
    mask_cache: Any,
    mask_active: Any,
    position_ids: Any,
    num_layers: int,
    eps: float = 1e-6,
    replica_groups: Sequence[Sequence[int]] | None = None,
    sbuf_residual_and_cc: bool = False,
    clamp_bound: float = 0.0,
    W_gate_scales: Any = None,
    W_up_scales: Any = None,
    W_down_scales: Any = None,
    *,
    bias_qkvs: Any = None,
    bias_outs: Any = None,
    W_gamma_qs: Any = None,
    W_gamma_ks: Any = None,
    W_gamma_post_attentions: Any = None,
    W_gamma_post_mlps: Any = None,
    sinks: Any = None,
    W_routers: Any = None,
    bias_routers: Any = None,
    bias_selections: Any = None,
    bias_gates: Any = None,
    bias_ups: Any = None,
    bias_downs: Any = None,
    W_shared_gates: Any = None,
    W_shared_ups: Any = None,
    W_shared_downs: Any = None,
    context_lengths: Any = None,
    context_starts: Any = None,
    block_tables: Any = None,
    k_scales: Any = None,
    v_scales: Any = None,
    W_gamma_final: Any = None,
    W_head: Any = None,
    softmax_scale: float | None = None,
    attention_softcap: float = 0.0,
    activation: str = "silu",
    activation_limit: float = 7.0,
    activation_alpha: float = 1.702,
    experts_per_token: int | None = None,
    routing: str = "softmax_topk",
    normalize_expert_weights: bool = False,
    routed_scale: float = 1.0,
    candidates_per_token: int | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
    axis_name: str | Sequence[str] | None = None,
    lnc: int | None = None,
    implementation: str = "auto",
    layers_per_launch: int | None = None,
    layer_kinds: Sequence[int] | None = None,
    context_bucket: int | Sequence[int | None] | None = None,
    context_parallel: int = 1,
) -> TransformerTkgOutput | TransformerTkgCandidates:
    """Runs all layers of a decoder-only transformer on S new tokens of each of B sequences.

    docs/operation.md gives the mathematics. The embedding is not included; the final norm, the head
    and the choice of its largest logits are, if `W_head` is given.

    Letters: B batch, S new tokens (1..8), H hidden, I MLP intermediate per rank, d head size,
    q query heads and k KV heads per rank, S_ctx context bucket, S_max cache capacity. d is even
    and at most 256, q is a multiple of k, S_ctx <= S_max; kernels want H and I to be multiples of
    128. V is the number of a rank's tokens of the vocabulary.

    A per-layer argument (`W_*`, `*_caches`) is a list or tuple of at least `num_layers` arrays, of
    which the first `num_layers` are used, or one array with a leading layer axis. Matrices and
    caches may be given as `jax_tkg.bits.Bits`, which is faster on CPUs.

    Args:
      X: [B, S, H] bfloat16, float16 or float32: the embedded tokens. Their dtype is the compute and
        output dtype.
      W_qkvs: each [H, (q + 2k)*d] in X's dtype: columns of the q query heads, then of the k key
        heads, then of the k value heads.
      W_outs: each [q*d, H] in X's dtype.
      W_gates: each [H, I] in X's dtype, or float8_e4m3, float8_e4m3fn or float8_e5m2 with a scale;
        or [E_held, H, I_expert]: the layer has experts, of which this rank holds E_held.
      W_ups: each [H, I] or [E_held, H, I_expert], in the dtypes of `W_gates`.
      W_downs: each [I, H] or [E_held, I_expert, H], in the dtypes of `W_gates`.
      W_gamma_qkvs: each [1, H], gain of the RMSNorm before attention.
      W_gamma_mlps: each [1, H], gain of the RMSNorm before the MLP.
      K_caches: each [B, k, d, S_max] in X's dtype, or [B, d, S_max] if k = 1; or in float8_e4m3 or
        float8_e4m3fn with a scale.
      V_caches: each [B, k, S_max, d], or [B, S_max, d] if k = 1, in the dtypes of `K_caches`.
      RoPE_cos: [d/2, B, S], cosines for the new tokens' positions (`jax_tkg.rope.rope_tables`).
      RoPE_sin: [d/2, B, S], their sines.
      mask_cache: [S_ctx, B, q, S] booleans or integers; non-zero where a query attends a cache
        slot. An additive bias is refused. None: `context_lengths` says which slots are attended.
      mask_active: [S (key), B, q, S (query)] booleans or integers; non-zero where a query attends a
        new key. None: the last S rows of `mask_cache` are this mask, and the cache slots with their
        numbers are not attended; with `context_lengths`, each query attends the new keys up to its
        own.
      position_ids: [B, 1] integers, the first cache slot to write for each sequence, or [B, S], the
        slot of each token. 2**32 - 1 or a negative number skips the write; slots outside
        0..S_max-1 are never written. None: the caches are returned unchanged.
      num_layers: how many layers to execute.
      eps: epsilon of the RMSNorms, at least float32's smallest normal number.
      replica_groups: lists of ranks that sum their partial results, if `axis_name` is not given.
        Ranks number the devices of the enclosing `jax.shard_map`'s mesh in row-major order.
      sbuf_residual_and_cc: on Neuron, keep residual and all-reduce on chip. The result is the same
        up to rounding.
      clamp_bound: if positive, the inputs of float8 matrix products are clipped to +-clamp_bound.
      W_gate_scales: None, or each [128, I] (equal rows) or [1, I] float32; of experts
        [E_held, 1, I_expert]; an entry is None if that layer's weight is not float8.
      W_up_scales: scales of `W_ups`, in the shapes of `W_gate_scales`.
      W_down_scales: scales of `W_downs`: each [128, H] (equal rows) or [1, H] float32, or of
        experts [E_held, 1, H], or None.
      bias_qkvs: None, or each [1, (q + 2k)*d], added to the QKV product in float32; columns as in
        `W_qkvs`. Here and below, an entry of a list may be None: that layer is without it.
      bias_outs: None, or each [1, H], added once to attention's output, after the all-reduce: the
        same array on every rank.
      W_gamma_qs: None, or each [1, d], gain of an RMSNorm of each query head, before RoPE.
      W_gamma_ks: None, or each [1, d], gain of an RMSNorm of each key head, before RoPE.
      W_gamma_post_attentions: None, or each [1, H], gain of an RMSNorm of attention's output, after
        the all-reduce and the bias, before it is added to the residual.
      W_gamma_post_mlps: None, or each [1, H], gain of an RMSNorm of the MLP's output, after the
        all-reduce, before it is added to the residual.
      sinks: None, or each [1, q] float32: one more logit of each query head's softmax, not scaled
        and not capped, with no value behind it.
      W_routers: None, or each [H, E] in X's dtype or float32; given for the layers with experts, of
        which there are E in all. Ranks split them by I_expert (E_held = E), or by expert
        (E_held = E / ranks, in the order of the ranks). This and the following arrays are None for
        layers without experts.
      bias_routers: None, or each [1, E], added to the router's logits.
      bias_selections: None, or each [1, E], added to the values that "sigmoid_topk" chooses experts
        by, not to their weights.
      bias_gates: None, or each [E_held, I_expert], added to the gate products.
      bias_ups: None, or each [E_held, I_expert], added to the up products.
      bias_downs: None, or each [E_held, H], added to an expert's result before it is weighted.
        Where ranks split experts by I_expert, the same array on every rank; it counts once.
      W_shared_gates: None, or each [H, I_shared] in X's dtype: gate projection of a shared expert,
        whose result is added for all tokens.
      W_shared_ups: each [H, I_shared], given with `W_shared_gates`.
      W_shared_downs: each [I_shared, H], given with `W_shared_gates`.
      context_lengths: in place of `mask_cache`, which is then None: [B] or [B, S] integers. Each
        query attends the slots 0..length-1 of its sequence, of the first S_ctx. No mask is made in
        memory.
      context_starts: None, or [B] or [B, S] integers: the slots start..length-1 are attended; where
        start > length the slots below length and those from start on, as in a ring. None: 0.
      block_tables: None, or [B, n] integers, for caches in blocks: entry i of a sequence is the
        block that holds its slots i*block_len.., negative where it has none, whose slots no query
        may attend. `K_caches` are then each [blocks, k, d, block_len], `V_caches` [blocks, k,
        block_len, d], S_ctx is n * block_len, and `position_ids` are block * block_len + offset.
        [B, 1] ids write the S tokens side by side in one block; those past its end are not written.
        Sequences may share blocks that none of them writes.
      k_scales: None, or each [1, 1] float32, positive: scales of float8 key caches, which hold
        clip(key * scale, -m, m), where m is 240 for float8_e4m3 and 448 for float8_e4m3fn. What is
        read is divided by the scale. The call attends its own new keys as they are, not rounded to
        float8. An entry is None if that layer's cache is not float8. `quantize.cache_scales`
        makes them.
      v_scales: the same for values.
      W_gamma_final: None, or [1, H], gain of the RMSNorm after the last layer, given with `W_head`.
      W_head: None, or [H, V] in X's dtype: the head. Normalized hidden states times it are the
        tokens' logits, in float32, of which `candidates_per_token` are returned. Ranks split the
        vocabulary evenly, in the order of `axis_name`, and each returns its own candidates;
        `jax_tkg.output_head.merge_candidates` merges them.
      softmax_scale: factor of the attention scores; None: d**-0.5.
      attention_softcap: if positive, scores become cap * tanh(scores / cap), after the scale and
        before the mask.
      activation: of the gate: "silu", "gelu_tanh" (the approximation by a tanh), "gelu" or "relu2"
        (relu(x)**2). "swiglu_oai" is g * sigmoid(alpha * g) * (u + 1) of g = min(gate, limit) and
        u = clip(up, -limit, limit).
      activation_limit: limit of "swiglu_oai".
      activation_alpha: alpha of "swiglu_oai".
      experts_per_token: how many experts run for a token; given if layers have experts. Among equal
        values the lowest expert is chosen.
      routing: "softmax_topk": the largest values of a softmax over all experts, which are also the
        weights. "topk_softmax": the largest logits, with a softmax over them as weights.
        "sigmoid_topk": sigmoids of the logits are the weights; the largest are chosen after
        `bias_selections` is added.
      normalize_expert_weights: whether a token's weights are divided by their sum.
      routed_scale: factor of the weights, after that; the shared expert has none.
      candidates_per_token: with `W_head`, how many of a token's largest logits are returned, at
        most V. Among equal logits the lowest ids are chosen. NaN, and logits below -3e38, count as
        -3e38.
      logit_scale: with `W_head`, factor of the returned logits.
      logit_softcap: with `W_head`, if positive, the returned logits become
        cap * tanh(logits / cap), after that factor; the choice is made before.
      axis_name: axis or axes of the enclosing `jax.shard_map` to sum over: the tensor-parallel
        ones.
      lnc: physical cores per logical Neuron core, 1 or 2. None: the environment's setting, or 2.
      implementation: "auto" chooses by the platform that is lowered for (`jax_tkg.explain` says
        what and why). "reference" is the definition in plain jax.numpy, on every platform. "cpu" is
        jax.numpy as XLA:CPU runs it fastest, on a CPU. "nki" is the Neuron kernel.
        "simulate" is the Neuron kernel in the NKI simulator, on a CPU. "nkilib" is AWS's published
        kernel, within its limits, on Neuron or in the simulator (`jax_tkg.lowering.nkilib` says
        where it is looked for).
      layers_per_launch: most layers in one launch of the Neuron kernel; None: all. Very large
        kernels compile slowly.
      layer_kinds: the kind of each layer, such as (0, 0, 1, 0, 0, 1). `RoPE_cos`, `RoPE_sin`,
        `mask_cache`, `mask_active`, `position_ids`, `context_lengths`, `context_starts`,
        `block_tables` and `context_bucket` may then each be a tuple with an entry for each kind,
        and S_ctx and S_max may differ from kind to kind: so layers with sliding windows have short
        caches (`jax_tkg.kinds`). Stacked caches are one array, or a sequence with one array of the
        kind's layers, [L_kind, B, k, d, S_max], for each kind. None: all layers are alike.
      context_bucket: S_ctx with `context_lengths`, at most S_max: slots beyond it are not read.
        None: S_max.
      context_parallel: c, how many neighboring ranks, in the order of `axis_name` or of their
        replica group, share out the context of the KV head that they have in common (k = 1, and
        the same key and value columns of `W_qkvs` on each). Slot s of a sequence is slot s // c of
        the rank s % c. So caches have S_max slots for c * S_max of a sequence, and blocks likewise
        (S_ctx is n * block_len * c). All other arguments are as with 1, about the slots of a
        sequence: S_ctx <= c * S_max, and `context_bucket` is a multiple of c.
        `jax_tkg.caches.share_out` makes such caches of whole ones.

    Returns:
      `TransformerTkgOutput(hidden, K_caches, V_caches)`; with `W_head`
      `TransformerTkgCandidates(hidden, K_caches, V_caches, candidate_logits, candidate_ids)`.
      Donated caches are updated in place.

    Raises:
      TypeError: an argument is missing or has a wrong type or dtype.
      ValueError: a shape, size or option is wrong; the message names the argument, what was
        expected and what came.
    """
    return named_results(
        run_checked(
            primitive.bind,
            {
                "X": X,
                "W_qkvs": W_qkvs,
                "W_outs": W_outs,
                "W_gates": W_gates,
                "W_ups": W_ups,
                "W_downs": W_downs,
                "W_gamma_qkvs": W_gamma_qkvs,
                "W_gamma_mlps": W_gamma_mlps,
                "K_caches": K_caches,
                "V_caches": V_caches,
                "RoPE_cos": RoPE_cos,
                "RoPE_sin": RoPE_sin,
                "mask_cache": mask_cache,
                "mask_active": mask_active,
                "position_ids": position_ids,
                "num_layers": num_layers,
                "eps": eps,
                "replica_groups": replica_groups,
                "sbuf_residual_and_cc": sbuf_residual_and_cc,
                "clamp_bound": clamp_bound,
                "W_gate_scales": W_gate_scales,
                "W_up_scales": W_up_scales,
                "W_down_scales": W_down_scales,
                "bias_qkvs": bias_qkvs,
                "bias_outs": bias_outs,
                "W_gamma_qs": W_gamma_qs,
                "W_gamma_ks": W_gamma_ks,
                "W_gamma_post_attentions": W_gamma_post_attentions,
                "W_gamma_post_mlps": W_gamma_post_mlps,
                "sinks": sinks,
                "W_routers": W_routers,
                "bias_routers": bias_routers,
                "bias_selections": bias_selections,
                "bias_gates": bias_gates,
                "bias_ups": bias_ups,
                "bias_downs": bias_downs,
                "W_shared_gates": W_shared_gates,
                "W_shared_ups": W_shared_ups,
                "W_shared_downs": W_shared_downs,
                "context_lengths": context_lengths,
                "context_starts": context_starts,
                "block_tables": block_tables,
                "k_scales": k_scales,
                "v_scales": v_scales,
                "W_gamma_final": W_gamma_final,
                "W_head": W_head,
                "softmax_scale": softmax_scale,
                "attention_softcap": attention_softcap,
                "activation": activation,
                "activation_limit": activation_limit,
                "activation_alpha": activation_alpha,
                "experts_per_token": experts_per_token,
                "routing": routing,
                "normalize_expert_weights": normalize_expert_weights,
                "routed_scale": routed_scale,
                "candidates_per_token": candidates_per_token,
                "logit_scale": logit_scale,
                "logit_softcap": logit_softcap,
                "axis_name": axis_name,
                "lnc": lnc,
                "implementation": implementation,
                "layers_per_launch": layers_per_launch,
                "layer_kinds": layer_kinds,
                "context_bucket": context_bucket,
                "context_parallel": context_parallel,
            },
        )
    )


def explain(*args: Any, platform: str | None = None, **kwargs: Any) -> Choice:
    """Says which implementation a call of `transformer_tkg` lowers to, and why.

    Args:
      *args: the call's arguments; arrays may be `jax.ShapeDtypeStruct` objects inside
        `jax.eval_shape`.
      platform: what is lowered for; None: the default backend's platform.
      **kwargs: the call's keyword arguments.

    Returns:
      The implementation's name and the reason, in one sentence.

    Raises:
      TypeError: as `transformer_tkg`.
      ValueError: as `transformer_tkg`, or the implementation asked for cannot run.
    """
    chosen: list[Choice] = []

    def run(operands: Operands, parameters: Parameters) -> tuple[Any, ...]:
        platforms = (platform or jax.default_backend(),)
        chosen.append(choose(operands, parameters, platforms))
        candidates = () if operands.W_head is None else (operands.X, operands.X)
        return operands.X, operands.K_caches, operands.V_caches, *candidates

    run_checked(run, bind_arguments(*args, **kwargs))
    return chosen[0]


def dry_run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Lowers a function for platform "neuron" on this machine, without compiling anything.

    Where AWS's nki (0.6 or later) is not installed, the kernel's custom calls name no compiled
    kernel. All else is as it is on a Trainium machine: targets, operands, aliases, and the config,
    to which this adds the replica groups and the number of layers.

    Args:
      function: jitted or not.
      *args: its arguments, arrays or `jax.ShapeDtypeStruct` objects.
      **kwargs: its keyword arguments.

    Returns:
      The StableHLO text.

    Raises:
      ValueError: the kernel cannot run a call, and `implementation` is not "auto".
    """
    return str(lower_for_neuron(function, *args, **kwargs).compiler_ir("stablehlo"))
