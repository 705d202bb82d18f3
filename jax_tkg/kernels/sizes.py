"""Sizes of one launch, and how the two cores of a logical core divide the work."""

import nki.language as nl
from nki.language import NKIObject

from .divisions import divides_slots, head_chunks, slots_attended_twice, slots_of_a_core
from .feature_order import FeatureOrder, even_blocks
from .limits import (
    FREE_STRIDE_BYTES,
    PARTITIONS,
    PIECE_ELEMENTS,
    feature_chunks,
)


class Sizes(NKIObject):
    """The dimension letters of `jax_tkg.call.dimensions`, and T = B * S tokens.

    S_prior is the number of cache slots that queries may attend: S_ctx, less S where the mask is
    unified.

    Attributes:
      head_chunks: chunks of a head: 1, or 2 if d features do not fit on the partitions.
      head_rows: features of a chunk: d, or d/2, so that the chunks are the halves that RoPE pairs.
      experts: E, experts of all ranks in layers that have some; else 0.
      expert_I: I of an expert.
      cache_rows: what dimension 0 of a layer's caches counts: sequences, or blocks.
      block_len: slots of a block, which S_max is then too; 0 for caches of sequences.
      n: blocks of a sequence, or 0.
      context_ranks: ranks that share out the context, whose query heads q counts.
      hidden_group: most chunks of a group of the residual stream; 0 for no such limit.
    """

    def __init__(
        self,
        B,
        S,
        H,
        I,  # noqa: E741
        d,
        q,
        k,
        S_prior,
        S_max,
        dtype,
        experts=0,
        expert_I=0,
        cache_rows=0,
        block_len=0,
        n=0,
        context_ranks=1,
        hidden_group=0,
    ):
        self.B = B
        self.S = S
        self.T = B * S
        self.H = H
        self.I = I
        self.d = d
        self.head_chunks = head_chunks(d)
        self.head_rows = d // self.head_chunks
        self.q = q
        self.k = k
        self.S_prior = S_prior
        self.S_max = S_max
        self.dtype = dtype
        self.experts = experts
        self.expert_I = expert_I
        self.cache_rows = B
        if block_len > 0:
            self.cache_rows = cache_rows
        self.block_len = block_len
        self.n = n
        self.context_ranks = context_ranks
        self.hidden_group = hidden_group

    def hidden_chunks(self):
        """Chunks of 128 hidden features."""
        return self.H // PARTITIONS

    def divides_slots(self, cores):
        """Whether each of two cores attends half of every sequence's cache slots."""
        return divides_slots(self.B, self.S_prior, cores, self._attended_twice())

    def slots_of_a_core(self, cores):
        """How many of each sequence's cache slots a core attends."""
        return slots_of_a_core(self.B, self.S_prior, cores, self._attended_twice())

    def _attended_twice(self):
        return slots_attended_twice(self.B, self.k, self.d, bytes_of(self.dtype), self.experts)

    def mlp_chunks(self):
        """Chunks of the features of a dense MLP or a shared expert, on the partitions."""
        return feature_chunks(self.I)


class Arithmetic(NKIObject):
    """The options that change what a layer computes.

    Attributes:
      eps: RMSNorm epsilon.
      clamp_bound: bound of the inputs of float8 products; 0 for none.
      softmax_scale: factor of the scores; None for d**-0.5.
      attention_softcap: what a tanh bounds the scaled scores to; 0 for nothing.
      activation: of the MLP's gate, as the public option names it.
      activation_limit: bound of gate and up in "swiglu_oai".
      activation_alpha: factor in that activation's sigmoid.
    """

    def __init__(
        self,
        eps,
        clamp_bound,
        softmax_scale=None,
        attention_softcap=0.0,
        activation="silu",
        activation_limit=7.0,
        activation_alpha=1.702,
    ):
        self.eps = eps
        self.clamp_bound = clamp_bound
        self.softmax_scale = softmax_scale
        self.attention_softcap = attention_softcap
        self.activation = activation
        self.activation_limit = activation_limit
        self.activation_alpha = activation_alpha

    def score_scale(self, d):
        """The factor of the scores of heads of d features."""
        if self.softmax_scale == None:
            return 1.0 / d**0.5
        return self.softmax_scale


class Core(NKIObject):
    """The physical core that runs this program: `index` of `count` cores of the logical core.

    Attributes:
      index, count: which of how many.
      hbm: the region of HBM for what a launch writes there and reads again: private to one core, as
        collectives of NKI 0.7 need it; two cores share it.
    """

    def __init__(self):
        # A launch on one physical core has no grid.
        if nl.program_ndim() == 0:
            self.count = 1
            self.index = 0
        else:
            self.count = nl.num_programs(0)
            self.index = nl.program_id(0)
        self.hbm = nl.private_hbm
        if self.count > 1:
            self.hbm = nl.shared_hbm


class Share(NKIObject):
    """Which of `total` tiles this core computes: `count` of them from `first`.

    If `total` is odd, both cores compute the middle tile. In sums over the tiles of both cores, the
    second core therefore leaves out its first `skipped` tiles.
    """

    def __init__(self, total, core):
        self.total = total
        if core.count == 1:
            self.count = total
            self.first = 0
            self.skipped = 0
        else:
            self.count = (total + 1) // 2
            self.first = core.index * (total - self.count)
            self.skipped = core.index * (2 * self.count - total)


class Context(NKIObject):
    """What every stage of a launch uses.

    Attributes:
      sizes: `Sizes`.
      arithmetic: `Arithmetic`.
      core: `Core`.
      ring: `WeightRing`, the buffers for weights and caches.
      held: `WeightRing`, the buffers for what is loaded while a router chooses experts; or None.
      loaded: `Places` of vectors on their way to their tiles.
      stored: `Places` of what the caches are updated with.
      constants: `Constants`, the constant tiles.
    """

    def __init__(self, sizes, arithmetic, core, ring, held, loaded, stored, constants):
        self.sizes = sizes
        self.arithmetic = arithmetic
        self.core = core
        self.ring = ring
        self.held = held
        self.loaded = loaded
        self.stored = stored
        self.constants = constants

    def hidden_share(self):
        """The chunks of the residual stream that this core holds."""
        return hidden_share(self.sizes, self.core)

    def hidden_order(self):
        """The `FeatureOrder` of the residual stream's chunks, of both cores."""
        return hidden_order(self.sizes, self.core)


def hidden_share(sizes, core):
    """The `Share` of the residual stream's chunks that a core holds."""
    return Share(sizes.hidden_chunks(), core)


def hidden_order(sizes, core):
    """The `FeatureOrder` of the residual stream, alike on both cores.

    A core's chunks are groups of as many as `FREE_STRIDE_BYTES` and `hidden_group` allow. A middle
    chunk that both cores hold is a group of its own.
    """
    total = sizes.hidden_chunks()
    most = FREE_STRIDE_BYTES // bytes_of(sizes.dtype)
    if sizes.hidden_group > 0:
        most = min(most, sizes.hidden_group)
    if core.count == 1:
        return FeatureOrder(PARTITIONS, even_blocks(0, total, most))
    half = total // 2
    groups = even_blocks(0, half, most)
    groups.extend(even_blocks(half, total - 2 * half, most))
    groups.extend(even_blocks(total - half, half, most))
    return FeatureOrder(PARTITIONS, groups)


def pieces(count, T):
    """(first, last) of pieces of `count` chunks of T columns, of `PIECE_ELEMENTS` or one chunk."""
    at_once = max(1, PIECE_ELEMENTS // T)
    found = []
    first = 0
    while first < count:
        found.append((first, min(first + at_once, count)))
        first += at_once
    return found


def bytes_of(dtype):
    """Bytes per element of a dtype."""
    if dtype == nl.float32:
        return 4
    if dtype == nl.bfloat16 or dtype == nl.float16:
        return 2
    return 1


def product_bytes(held, dtype):
    """Bytes per element in which products with `dtype` take a weight or cache held as `held`."""
    if dtype == nl.float32:
        return 4
    return bytes_of(held)


def is_multipliable(held, dtype):
    """Whether a weight or cache held as `held` is multiplied with `dtype` as it is: float32 with
    nothing else."""
    return dtype != nl.float32 or held == nl.float32
