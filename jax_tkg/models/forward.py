"""One forward pass of a model: embedding, `transformer_tkg`, last RMSNorm, output head."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_tkg.api import is_within_limits, transformer_tkg
from jax_tkg.caches import allocate_blocks, allocate_caches, ring_capacity
from jax_tkg.kinds import Kind, decode_inputs, prefill_inputs, step_inputs
from jax_tkg.models.config import LayerKind, ModelConfig
from jax_tkg.models.packing import PackedModel, head_split
from jax_tkg.models.placed_parameters import TENSOR_AXIS, PlacedParameters, placement
from jax_tkg.models.sampling import Scores
from jax_tkg.output_head import merge_candidates, rms_norm
from jax_tkg.prefill import transformer_prefill


class ModelForward:
    """A model on its devices.

    On CPUs low precision is held as `jax_tkg.bits.Bits`.

    Args:
      model: packed for the mesh's ranks; or the outline of one, whose arrays `place` brings.
      mesh: one axis named `TENSOR_AXIS`, of the size the model is packed for; None for one
        device.
      implementation: of `transformer_tkg`.
      stacked: whether weights and caches have a layer axis or are lists of arrays. None: a layer
        axis on CPUs, where that is quick to compile and to call, and lists elsewhere and where only
        some layers have experts.
      capacity: the longest sequence in tokens: S_max of all caches but those of layers with
        shorter windows, which are rings. It also decides which frequencies of LongRoPE apply.
        None: the model's context length.
      candidates: whether `scores`, where the likeliest tokens are enough, takes them from
        `transformer_tkg`, or computes all logits. None: takes them where our kernel runs and has
        room for them: "nki", "simulate", and "auto" on Neuron.
      context_parallel: ranks that share out the context of a KV head that they have in common, a
        divisor of those that do (`jax_tkg.weights.split_heads`); 1: each holds all of it.

    Attributes:
      model: as given.
      context_parallel: as given.
      parameters: the model's arrays on the devices.
      platform: of its devices, such as "cpu".
      replicated: sharding of an array that every device has whole, or None without a mesh.
      cache_sharding: sharding of each cache, or None without a mesh.

    Raises:
      ValueError: the mesh does not fit the model, layers that differ are to be stacked, or too few
        ranks have a KV head in common.
    """

    def __init__(
        self,
        model: PackedModel,
        mesh: jax.sharding.Mesh | None = None,
        implementation: str = "auto",
        stacked: bool | None = None,
        capacity: int | None = None,
        candidates: bool | None = None,
        context_parallel: int = 1,
    ):
        ranks = 1 if mesh is None else mesh.shape.get(TENSOR_AXIS, 0)
        if ranks != model.tensor_parallel or (mesh is not None and mesh.size != ranks):
            expected = (
                f"one axis {TENSOR_AXIS!r} of {model.tensor_parallel} devices, as the model is "
                f"packed for {model.tensor_parallel}"
            )
            got = "None" if mesh is None else dict(mesh.shape)
            raise ValueError(f"mesh: expected {expected}, got {got}")
        copies = head_split(model.config, model.tensor_parallel).copies
        if context_parallel < 1 or copies % context_parallel:
            raise ValueError(
                f"context_parallel: expected a divisor of the {copies} ranks that have a KV head "
                f"in common, got {context_parallel}"
            )
        if mesh is not None:
            # What is computed between the calls of the primitive is left to the compiler to split.
            axis_types = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
            mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=axis_types)
        self.model = model
        self.mesh = mesh
        self.implementation = implementation
        self._placement = placement(model.config, mesh, stacked)
        self.platform = self._placement.platform
        self.replicated = self._placement.sharding(jax.sharding.PartitionSpec())
        self.cache_sharding = self._placement.sharding(self._placement.specs.K_caches)
        self._kernel = implementation
        if implementation == "auto" and self.platform == "neuron":
            self._kernel = "nki"
        if candidates is None and self._kernel not in ("nki", "simulate"):
            candidates = False
        self._candidates = candidates
        capacity = model.config.context_length if capacity is None else capacity
        self._kinds = tuple(
            _kind(model.config, kind, capacity, context_parallel) for kind in model.config.kinds
        )
        self.context_parallel = context_parallel
        self._options = _options(model.config)
        self.parameters = self._placement.placed(model.parameters)

    @property
    def takes_candidates(self) -> bool:
        """Whether `scores` may take the likeliest tokens from `transformer_tkg`."""
        return self._candidates is not False

    def caches(self, batch: int) -> tuple[Any, Any]:
        """Zeroed caches for `batch` sequences of `capacity` tokens; rings are shorter."""
        alike = len(self._kinds) == 1
        return self._placement.cached(
            allocate_caches(
                B=batch,
                S_max=[kind.S_max for kind in self._kinds],
                layer_kinds=None if alike else self.model.config.layer_kinds,
                context_parallel=self.context_parallel,
                **self._cache_sizes(),
            )
        )

    def block_caches(self, blocks: int, block_len: int) -> tuple[Any, Any]:
        """Zeroed caches in blocks, for `block_tables`.

        Args:
          blocks: of all sequences together.
          block_len: tokens of a block.

        Raises:
          ValueError: the model has layers of several kinds, or with a window; or ranks share out
            contexts.
        """
        if self.context_parallel > 1:
            raise ValueError(
                "blocks: expected context_parallel = 1 with them, got context_parallel = "
                f"{self.context_parallel}"
            )
        if len(self._kinds) > 1 or self._kinds[0].window is not None:
            raise ValueError(
                "blocks: expected a model whose layers are of one kind, without a window within "
                "the capacity, got one with windows or several kinds"
            )
        return self._placement.cached(
            allocate_blocks(blocks=blocks, block_len=block_len, **self._cache_sizes())
        )

    def _cache_sizes(self) -> dict[str, Any]:
        """What flat caches and those in blocks have in common."""
        config = self.model.config
        return {
            "num_layers": config.num_layers,
            "k": self.model.kv_heads,
            "d": config.head_size,
            "dtype": self.model.parameters.head.dtype,
            "stacked": self._placement.stacked,
            "sharding": self.cache_sharding,
        }

    def cache_shapes(self, batch: int) -> tuple[Any, Any]:
        """The shapes, dtypes and shardings of what `caches` makes, as jax.ShapeDtypeStruct."""

        def sharded(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.cache_sharding)

        return jax.tree.map(sharded, jax.eval_shape(lambda: self.caches(batch)))

    def hidden(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int,
        block_tables: jax.Array | None = None,
    ) -> tuple[jax.Array, Any, Any]:
        """Runs all layers on new tokens, for use inside a jitted function.

        Args:
          parameters: `self.parameters`, as an argument of the jitted function.
          tokens: [B, S] int32, right-padded with any valid id.
          lengths: [B] int32, tokens in each sequence's cache.
          counts: [B] int32, how many of each sequence's new tokens are real; padding is neither
            attended nor written.
          K_caches: as `caches` makes them.
          V_caches: likewise.
          S_ctx: context bucket; at least the largest of `lengths`.
          block_tables: [B, n] int32, the blocks of each sequence, of S_ctx / n slots each, where
            the caches are those of `block_caches`; None for those of `caches`.

        Returns:
          Hidden states [B, S, H] before the last RMSNorm, and the updated caches.
        """
        by_kind = self._step_inputs(tokens.shape[1], lengths, counts, S_ctx, block_tables)
        arguments = self._arguments(parameters, tokens, K_caches, V_caches, by_kind)
        return self._run(transformer_tkg, arguments, implementation=self.implementation)

    def scores(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
        S_ctx: int,
        candidates: int | None,
        block_tables: jax.Array | None = None,
    ) -> tuple[Scores, Any, Any]:
        """Runs all layers on new tokens as `hidden` does, and the head.

        Args:
          parameters: as of `hidden`, as are the next six and `block_tables`.
          tokens: as of `hidden`.
          lengths: as of `hidden`.
          counts: as of `hidden`.
          K_caches: as of `hidden`.
          V_caches: as of `hidden`.
          S_ctx: as of `hidden`.
          candidates: how many of the likeliest tokens are enough; None: all logits are needed.
          block_tables: as of `hidden`.

        Returns:
          Scores [B, S, V] of all tokens, or [B, S, n] of the n = `candidates` likeliest (at most
          V), in one call with the layers; and the updated caches.
        """
        by_kind = self._step_inputs(tokens.shape[1], lengths, counts, S_ctx, block_tables)
        arguments = self._arguments(parameters, tokens, K_caches, V_caches, by_kind)
        if candidates is not None and self.takes_candidates:
            count = min(candidates, self.model.config.vocabulary_size)
            with_head = {
                **arguments,
                "W_gamma_final": parameters.final_gamma,
                "W_head": parameters.vocabulary.head,
            }
            # A rank may have fewer.
            of_rank = min(count, with_head["W_head"].shape[1] // self.model.tensor_parallel)
            if self._candidates or self._kernel_takes(with_head, of_rank):
                _, *caches, logits, ids = self._run(
                    transformer_tkg,
                    with_head,
                    implementation=self.implementation,
                    candidates_per_token=of_rank,
                )
                if self.mesh is not None:
                    logits, ids = merge_candidates(logits, ids, count)
                return Scores(self._scaled(logits), ids), *caches
        hidden, *caches = self._run(transformer_tkg, arguments, implementation=self.implementation)
        return Scores(self.logits(parameters, hidden)), *caches

    def _kernel_takes(self, arguments: dict[str, Any], count: int) -> bool:
        """Whether a call with a head is within the limits of our kernel."""
        found: list[bool] = []

        def check(**given: Any) -> tuple[Any, ...]:
            found.append(is_within_limits(self._kernel, **given))
            X = given["X"]
            return X, given["K_caches"], given["V_caches"], X, X

        run = functools.partial(self._run, check, candidates_per_token=count)
        jax.eval_shape(run, arguments)
        return all(found)

    def _step_inputs(
        self,
        S: int,
        lengths: jax.Array,
        counts: jax.Array,
        S_ctx: int,
        block_tables: jax.Array | None,
    ) -> dict[str, tuple[Any, ...]]:
        """Tables, masks and positions of a step with S new tokens, an entry for each kind."""
        q = self.model.config.num_heads
        if block_tables is None:
            return step_inputs(self._kinds, lengths, S_tkg=S, q=q, S_ctx=S_ctx, new_lengths=counts)
        (kind,) = self._kinds
        inputs = decode_inputs(
            lengths,
            kind.frequencies,
            S_tkg=S,
            new_lengths=counts,
            block_tables=block_tables,
            block_len=S_ctx // block_tables.shape[1],
            concentrations=kind.concentrations,
            q=q,
        )
        return {name: (given,) for name, given in inputs.items()}

    def prefill(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        lengths: jax.Array,
        counts: jax.Array,
        K_caches: Any,
        V_caches: Any,
    ) -> tuple[jax.Array, Any, Any]:
        """As `hidden`, for any number S of new tokens, and with no context bucket.

        Runs `jax_tkg.prefill.transformer_prefill` whatever the implementation is. Memory grows with
        S, not with the context, and so does compiling: one program serves every context.

        Returns:
          Hidden states [B, S, H] before the last RMSNorm, of which those of padding mean nothing,
          and the updated caches.
        """
        by_kind = prefill_inputs(self._kinds, lengths, S=tokens.shape[1], new_lengths=counts)
        arguments = self._arguments(parameters, tokens, K_caches, V_caches, by_kind)
        windows = [kind.window for kind in self._kinds]
        return self._run(transformer_prefill, arguments, windows=windows, platform=self.platform)

    def _arguments(
        self,
        parameters: PlacedParameters,
        tokens: jax.Array,
        K_caches: Any,
        V_caches: Any,
        by_kind: dict[str, tuple[Any, ...]],
    ) -> dict[str, Any]:
        """The array arguments of the operation, without those that are None."""
        alike = len(self._kinds) == 1
        arguments = {
            "X": self._embedded(parameters, tokens),
            **parameters.layers.arguments(),
            "K_caches": K_caches,
            "V_caches": V_caches,
            **{name: entries[0] if alike else entries for name, entries in by_kind.items()},
        }
        return {name: given for name, given in arguments.items() if given is not None}

    def logits(self, parameters: PlacedParameters, hidden: jax.Array) -> jax.Array:
        """Logits [..., V] float32 of hidden states [..., H]."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        normed = rms_norm(rows, parameters.final_gamma, self.model.eps)
        platform = self.platform if self.mesh is None else None
        logits = self._scaled(parameters.vocabulary.logits(normed, platform))
        # Columns beyond are padding for the ranks.
        logits = logits[..., : self.model.config.vocabulary_size]
        return logits.reshape(*hidden.shape[:-1], -1)

    def _scaled(self, logits: jax.Array) -> jax.Array:
        """Logits times the model's factor, and capped."""
        config = self.model.config
        if config.logit_scale != 1:
            logits = logits * config.logit_scale
        if config.logit_softcap:
            logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
        return logits

    def _embedded(self, parameters: PlacedParameters, tokens: jax.Array) -> jax.Array:
        """Hidden states [..., H] of token ids [...]; their factor is rounded to their dtype first,
        as in transformers."""
        embedded = parameters.vocabulary.embed(tokens)
        scale = self.model.config.embedding_scale
        return embedded if scale == 1 else embedded * jnp.asarray(scale, embedded.dtype)

    def _run(
        self, operation: Callable[..., Any], arguments: dict[str, Any], **options: Any
    ) -> tuple[Any, ...]:
        """Runs the operation, `transformer_tkg` or another with its arguments, on the mesh."""
        call = functools.partial(
            operation,
            num_layers=self.model.config.num_layers,
            eps=self.model.eps,
            context_parallel=self.context_parallel,
            **self._options,
            **options,
        )
        named = {"mask_cache": None, "mask_active": None, **arguments}
        if self.mesh is None:
            return tuple(call(**named))
        specs = self._placement.specs
        candidates = (specs.candidates,) * 2 if "W_head" in named else ()
        parallel = jax.shard_map(
            lambda named: tuple(call(**named, axis_name=TENSOR_AXIS)),
            mesh=self.mesh,
            in_specs=({name: getattr(specs, name) for name in named},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches, *candidates),
        )
        return parallel(named)

    def place(self, model: PackedModel) -> bool:
        """Puts a model on the devices, in place of the arrays or shapes held so far, and waits.

        Args:
          model: of the same config, packed for as many ranks.

        Returns:
          Whether they have the shapes, dtypes and places of those before.
        """
        before = jax.tree.map(_shape, self.parameters)
        self.model = model
        self.parameters = jax.block_until_ready(self._placement.placed(model.parameters))
        return before == jax.tree.map(_shape, self.parameters)


def _options(config: ModelConfig) -> dict[str, Any]:
    """The static options of `transformer_tkg` that differ from their defaults."""
    options: dict[str, Any] = {}
    if config.activation != "silu":
        options["activation"] = config.activation
    if config.softmax_scale is not None:
        options["softmax_scale"] = config.softmax_scale
    if config.attention_softcap:
        options["attention_softcap"] = config.attention_softcap
    if config.experts is not None:
        options["experts_per_token"] = config.experts.per_token
        options["routing"] = config.experts.routing
        options["normalize_expert_weights"] = config.experts.normalize_weights
    if len(config.kinds) > 1:
        options["layer_kinds"] = config.layer_kinds
    return options


def _kind(config: ModelConfig, kind: LayerKind, capacity: int, context_parallel: int) -> Kind:
    """What the layers of a kind are given in each step, with caches of a capacity.

    Rings have as many slots on each rank that shares them out. Where no sequence grows longer than
    the window, there is none.
    """
    rope = kind.rope
    frequencies = rope.head_frequencies(config.head_size, capacity)
    concentrations = rope.head_concentrations(config.head_size)
    if kind.window is None or kind.window >= capacity:
        return Kind(capacity, frequencies, concentrations=concentrations)
    ring = min(capacity, ring_capacity(kind.window))
    ring = -(-ring // context_parallel) * context_parallel
    return Kind(ring, frequencies, kind.window, concentrations)


def _shape(leaf: Any) -> tuple[Any, ...]:
    return leaf.shape, jnp.dtype(leaf.dtype)
