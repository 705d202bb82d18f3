"""What a decode loop adds to the memory of its process."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import unittest

import pytest
from absl.testing import absltest, parameterized

STATUS = pathlib.Path("/proc/self/status")
CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")

LOOP = """
import ctypes, gc, pathlib, sys
import jax, jax.numpy as jnp
import jax_tkg
from jax_tkg import caches, masks, rope
from jax_tkg.bits import as_bits, weights_as_bits
from jax_tkg.weights import TransformerWeights, stack_layers

dtype, stacked = sys.argv[1], sys.argv[2] == "stacked"
L, B, H, I, q, k, d, S_ctx, S_max = 8, 2, 1024, 6144, 8, 2, 128, 128, 8192


def memory(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def matrix(rows, columns):
    return [jnp.full((rows, columns), 0.01, dtype) for _ in range(L)]


weights = TransformerWeights(
    W_qkvs=matrix(H, (q + 2 * k) * d), W_outs=matrix(q * d, H), W_gates=matrix(H, I),
    W_ups=matrix(H, I), W_downs=matrix(I, H), W_gamma_qkvs=[jnp.ones((1, H))] * L,
    W_gamma_mlps=[jnp.ones((1, H))] * L,
)
weights = weights_as_bits(stack_layers(weights) if stacked else weights)
kept = jax.tree.map(as_bits, caches.allocate_caches(
    L, B=B, k=k, d=d, S_max=S_max, dtype=dtype, stacked=stacked))
x, lengths = jnp.ones((B, 1, H), dtype), jnp.zeros(B, jnp.int32)


def step(x, weights, kept, lengths):
    cos, sin = rope.rope_tables(lengths[:, None], d)
    out = jax_tkg.transformer_tkg(
        X=x, **weights.arguments(), K_caches=kept[0], V_caches=kept[1], RoPE_cos=cos,
        RoPE_sin=sin, mask_cache=masks.cache_mask(lengths, S_ctx, q, 1),
        mask_active=masks.active_mask(1, B, q), position_ids=lengths[:, None], num_layers=L,
    )
    return out.hidden, (out.K_caches, out.V_caches), lengths + 1


compiled = jax.jit(step, donate_argnums=2).lower(x, weights, kept, lengths).compile()
jax.block_until_ready((x, weights, kept, lengths))
gc.collect()
# What compiling has freed but not given back would hide what the loop takes.
ctypes.CDLL(None).malloc_trim(0)
before = memory("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
for _ in range(8):
    x, kept, lengths = compiled(x, weights, kept, lengths)
jax.block_until_ready(x)
held = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (weights, kept)]
print(memory("VmHWM") - before, before, *held)
"""


def _can_measure() -> bool:
    return sys.platform == "linux" and STATUS.exists() and CLEAR_REFS.exists()


@unittest.skipUnless(_can_measure(), "peak memory is read and reset in Linux's /proc")
@pytest.mark.thorough
class ProcessMemoryTest(parameterized.TestCase):
    @parameterized.product(dtype=("float32", "bfloat16"), form=("lists", "stacked"))
    @pytest.mark.extended_except("0")
    def test_decode_loop(self, dtype: str, form: str) -> None:
        """Peak memory is weights, caches and less than a layer's weights, not copies of either."""
        done = subprocess.run(
            [sys.executable, "-c", LOOP, dtype, form], capture_output=True, text=True, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        grown, before, weights, caches = map(int, done.stdout.split())
        # All of what is held was resident before the loop.
        self.assertGreater(before, weights + caches)
        self.assertLess(grown, weights / 8)
        # A copy of the caches or the up-cast weights would have stood out.
        self.assertGreater(caches, weights / 4)


if __name__ == "__main__":
    absltest.main()
