"""New keys and values go to their slots; every other bit of the caches stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from tests.stages import drawing
from tests.stages.kernel_stages import KernelStages

SKIPPED = 2**32 - 1


def _slots(position_ids: np.ndarray, S: int, S_max: int) -> np.ndarray:
    """[B, S]: where each token goes; -1 for nowhere."""
    ids = position_ids.astype(np.int64)
    ids[ids == SKIPPED] = -1
    if ids.shape[1] < S:
        ids = np.where(ids >= 0, ids + np.arange(S), -1)
    return np.where(ids < S_max, ids, -1)


def _offsets(slots: np.ndarray, windows: bool, k: int, d: int, S_max: int) -> dict[str, Any]:
    """What the kernel is given: where windows of keys, single keys and values begin."""
    B, S = slots.shape
    whole = slots[:, -1] >= 0 if windows else np.zeros(B, bool)
    offsets: dict[str, Any] = {"window_offsets": None}
    if windows:
        first = np.arange(B) * k * d * S_max + slots[:, 0]
        offsets["window_offsets"] = np.where(whole, first, SKIPPED)[None].astype(np.uint32)
    keys, values = np.full((B, S), SKIPPED), np.full((B, S), SKIPPED)
    for b, s in np.ndindex(B, S):
        # Of two tokens with one slot the later stays.
        if slots[b, s] >= 0 and slots[b, s] not in slots[b, s + 1 :]:
            values[b, s] = b * k * S_max + slots[b, s]
            if not whole[b]:
                keys[b, s] = b * k * d * S_max + slots[b, s]
    only_windows = windows and S == 1
    offsets["key_offsets"] = None if only_windows else keys.reshape(1, -1).astype(np.uint32)
    offsets["value_offsets"] = values.reshape(1, -1).astype(np.uint32)
    return offsets


@pytest.mark.thorough
class CacheUpdateTest(parameterized.TestCase):
    @parameterized.product(
        implementation=tuple(drawing.IMPLEMENTATIONS), each=(False, True), dtype=drawing.DTYPES
    )
    @pytest.mark.extended_except("1", "6", "8", "10", "13", "15")
    def test_drawn(self, implementation: str, each: bool, dtype: str) -> None:
        stages = drawing.IMPLEMENTATIONS[implementation]

        @drawing.examples(f"cache_update {each} {dtype}", 10)
        def run(data: st.DataObject) -> None:
            B, S = drawing.tokens(data, 40)
            k = data.draw(st.sampled_from((1, 2, 3, 8)))
            d = drawing.head_size(data)
            S_max = data.draw(st.integers(S, 70))
            rng = drawing.generator(data)
            shape = (B, S) if each else (B, 1)
            # At and past the end, and skipped; two tokens may have one slot.
            ids = rng.integers(0, S_max + 3, shape)
            ids[rng.random(shape) < 0.2] = -1
            kind = data.draw(st.sampled_from((np.int32, np.uint32)))
            ids = ids.astype(np.int64).astype(kind)
            layers = data.draw(st.integers(1, 3)) if isinstance(stages, KernelStages) else 1
            K = drawing.uniform(rng, layers, B, k, d, S_max, dtype=dtype)
            V = drawing.uniform(rng, layers, B, k, S_max, d, dtype=dtype)
            key, value = (drawing.uniform(rng, B, S, k, d, dtype=dtype) for _ in range(2))
            layer = layers - 1
            want_K, want_V = K.copy(), V.copy()
            slots = _slots(ids, S, S_max)
            for b, s in np.ndindex(B, S):
                if slots[b, s] >= 0:
                    want_K[layer, b, :, :, slots[b, s]] = key[b, s]
                    want_V[layer, b, :, slots[b, s]] = value[b, s]
            if not isinstance(stages, KernelStages):
                got_K, got_V = stages.write_caches(K[0], V[0], key, value, ids)
            else:
                offsets = _offsets(slots, ids.shape[1] == 1, k, d, S_max)
                if data.draw(st.booleans()):
                    got_K, got_V = stages.write_caches(K, V, key, value, offsets, layer)
                else:
                    want_K, want_V = want_K[layer], want_V[layer]
                    got_K, got_V = stages.write_caches(K[layer], V[layer], key, value, offsets)
            self.assertEqual(got_K.tobytes(), want_K.tobytes())
            self.assertEqual(got_V.tobytes(), want_V.tobytes())

        del run


if __name__ == "__main__":
    absltest.main()
