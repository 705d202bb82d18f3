"""The kinds of a launch's layers: the sizes, masks, rotation and write offsets of each."""

from nki.language import NKIObject

from .constants import Constants
from .context_ranks import context_ranks
from .layer_caches import OffsetTables
from .limits import RING_SLOT_BYTES, RING_SLOTS, WIDE_SLOT_BYTES, ceiling_divide
from .masks import Masks
from .places import launch_places
from .rope import Rotation
from .sizes import Context, Sizes
from .token_blocks import attended_blocks
from .weight_ring import WeightRing


class KindArguments(NKIObject):
    """The arguments of `transformer_tkg` of which each kind of layers has its own.

    Of all kinds, each is a tuple with an entry for each kind, or `context_bucket` None.
    """

    def __init__(
        self,
        RoPE_cos,
        RoPE_sin,
        prior_mask,
        active_mask,
        context_ranges,
        block_numbers,
        window_offsets,
        key_offsets,
        value_offsets,
        context_bucket,
    ):
        self.RoPE_cos = RoPE_cos
        self.RoPE_sin = RoPE_sin
        self.prior_mask = prior_mask
        self.active_mask = active_mask
        self.context_ranges = context_ranges
        self.block_numbers = block_numbers
        self.window_offsets = window_offsets
        self.key_offsets = key_offsets
        self.value_offsets = value_offsets
        self.context_bucket = context_bucket

    def of_kind(self, kind):
        """One kind's, of those of all kinds."""
        bucket = self.context_bucket
        if bucket != None:
            bucket = bucket[kind]
        return KindArguments(
            self.RoPE_cos[kind],
            self.RoPE_sin[kind],
            self.prior_mask[kind],
            self.active_mask[kind],
            self.context_ranges[kind],
            self.block_numbers[kind],
            self.window_offsets[kind],
            self.key_offsets[kind],
            self.value_offsets[kind],
            bucket,
        )

    def entries(self, B):
        """n, the entries of a sequence's block table; 0 for caches that are not in blocks."""
        numbers = self.block_numbers
        if numbers == None:
            return 0
        return numbers.shape[1] // B

    def slots(self, S_max, B, parts):
        """S_prior, of one kind: the cache slots that this rank reads.

        Args:
          S_max: capacity of the kind's caches, or slots of a block.
          B: sequences.
          parts: how many ranks share out a context.
        """
        prior = self.prior_mask
        if self.context_ranges == None:
            if prior == None:
                return 0
            return prior.shape[0]
        if self.context_bucket != None:
            return ceiling_divide(self.context_bucket, parts)
        if self.block_numbers != None:
            return S_max * self.entries(B)
        return S_max


class Shared(NKIObject):
    """What the layers of all kinds share.

    Attributes:
      core: `Core`.
      arithmetic: `Arithmetic`.
      reduction: the `Reduction` of the all-reduces.
      routing: `Routing`; None if no layer has experts.
      replica_groups: tuple of tuples of ranks, or None.
      context_parallel: how many ranks of a group share out the context of a KV head.
      place_bytes: bytes per partition for `launch_places`.
      held_buffers: buffers for weights that load while a router chooses experts.
    """

    def __init__(
        self,
        core,
        arithmetic,
        reduction,
        routing,
        replica_groups,
        context_parallel,
        place_bytes,
        held_buffers,
    ):
        self.core = core
        self.arithmetic = arithmetic
        self.reduction = reduction
        self.routing = routing
        self.replica_groups = replica_groups
        self.context_parallel = context_parallel
        self.place_bytes = place_bytes
        self.held_buffers = held_buffers

    def expert_count(self):
        """E, the experts of all ranks; 0 without experts."""
        routing = self.routing
        if routing == None:
            return 0
        return routing.experts

    def may_skip_experts(self, T):
        """Whether loads of an expert's weights may be skipped, with T tokens."""
        routing = self.routing
        if routing == None:
            return False
        return routing.may_be_fewer(T)

    def context_ranks(self, sizes):
        """The `ContextRanks` of a kind with these sizes; None if each rank has all slots."""
        reduction = self.reduction
        return context_ranks(self.context_parallel, self.replica_groups, reduction.on_chip, sizes)


class Kind(NKIObject):
    """What the layers of a kind have in common.

    Attributes:
      shared: `Shared`.
      context: `Context`. Those of other kinds have other sizes, and else the same.
      attention: that of attention, whose sizes have the query heads of all `ranks`.
      ranks: the `ContextRanks` that share out the context of a KV head, or None.
      rotation: `Rotation`.
      masks: `Masks`.
      tables: `OffsetTables`.
      offsets: if layers have instructions of their own, the `WriteOffsets` of all; else None.
    """

    def __init__(self, shared, context, attention, ranks, rotation, masks, tables):
        self.shared = shared
        self.context = context
        self.attention = attention
        self.ranks = ranks
        self.rotation = rotation
        self.masks = masks
        self.tables = tables
        self.offsets = None


def launch_kinds(X, operands, caches, layers, arguments, shared):
    """The `Kind`s of a launch, None for one that no layer of it has.

    Their tables and masks load, and the ring's buffers and the constants are made.

    Args:
      X: [B, S, H].
      operands: the `LayerOperands` of all layers.
      caches: `Caches`.
      layers: `LayerRange`.
      arguments: `KindArguments`, of all kinds if `layers` has kinds.
      shared: `Shared`.
    """
    core = shared.core
    kinds = []
    ring = None
    held = None
    loaded = None
    stored = None
    constants = None
    mask_bytes = 0
    cleared = False
    for number in range(layers.kind_count()):
        layer = layers.first_of(number)
        kind = None
        if layer != None:
            own = arguments
            if layers.kinds != None:
                own = arguments.of_kind(number)
            K_cache = caches.keys_like(layer, layers)
            sizes = _kind_sizes(X, operands, K_cache, layers, own, shared, 1)
            # With the query heads of all that share out the context.
            heads = shared.context_parallel
            attention_sizes = _kind_sizes(X, operands, K_cache, layers, own, shared, heads)
            rotation = Rotation(own.RoPE_cos, own.RoPE_sin, sizes)
            masks = Masks(
                own.prior_mask,
                own.active_mask,
                attention_sizes,
                core,
                mask_bytes,
                ranges=own.context_ranges,
                kinds=layers.kind_count(),
            )
            mask_bytes = masks.bytes
            if ring == None:
                slot_bytes = RING_SLOT_BYTES
                if shared.held_buffers > 0:
                    slot_bytes = WIDE_SLOT_BYTES
                    held = WeightRing(shared.held_buffers, slot_bytes)
                ring = WeightRing(RING_SLOTS, slot_bytes)
                loaded, stored = launch_places(shared.place_bytes)
                if shared.may_skip_experts(sizes.T):
                    ring.clear()
                    cleared = True
                constants = Constants(sizes)
            if own.block_numbers != None and not cleared:
                ring.clear()
                cleared = True
            tables = OffsetTables(
                own.window_offsets,
                own.key_offsets,
                own.value_offsets,
                own.block_numbers,
                attended_blocks(sizes, core),
            )
            context = Context(sizes, shared.arithmetic, core, ring, held, loaded, stored, constants)
            attention = Context(
                attention_sizes, shared.arithmetic, core, ring, held, loaded, stored, constants
            )
            ranks = shared.context_ranks(sizes)
            kind = Kind(shared, context, attention, ranks, rotation, masks, tables)
        kinds.append(kind)
    return kinds


def launch_context(kinds):
    """The `Context` of a launch's first kind, for what depends on no kind."""
    context = None
    for kind in kinds:
        if context == None and kind != None:
            context = kind.context
    return context


def _kind_sizes(X, operands, K_cache, layers, arguments, shared, ranks):
    """The `Sizes` of a kind, with the query heads of this rank and of ranks - 1 others."""
    B, S, H = X.shape
    cache_rows, k, d, S_max = K_cache.shape
    W_out = operands.W_out
    n = arguments.entries(B)
    block_len = 0
    if n > 0:
        block_len = S_max
    return Sizes(
        B,
        S,
        H,
        operands.dense_features(layers.looped),
        d,
        ranks * (W_out.tensor[0].shape[0] // d),
        k,
        arguments.slots(S_max, B, shared.context_parallel),
        S_max,
        X.dtype,
        experts=shared.expert_count(),
        expert_I=operands.expert_features(layers.looped),
        cache_rows=cache_rows,
        block_len=block_len,
        n=n,
        context_ranks=ranks,
        hidden_group=operands.rows_of_a_load(),
    )
