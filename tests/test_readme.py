"""The README's Python runs as it stands, in order, and means what it says."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest
from absl.testing import absltest

import jax_tkg
from jax_tkg import masks, rope
from jax_tkg.weights import pack_qkv

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.thorough
class OperationPageTest(absltest.TestCase):
    @pytest.mark.extended
    def test_lengths_and_kinds(self) -> None:
        page = README.parent / "docs" / "operation.md"
        of_lengths, example = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        names: dict[str, Any] = {}
        exec(compile(of_lengths, str(page), "exec"), names)
        (filled,) = np.nonzero(np.asarray(names["out"].K_caches[1, 2, 0, 0]))
        np.testing.assert_array_equal(filled, [200])
        names = {}
        exec(compile(example, str(page), "exec"), names)
        self.assertEqual([len(stack) for stack in names["out"].K_caches], [7, 1])
        written = [np.flatnonzero(stack[0, 1, 0, 0]) for stack in names["out"].K_caches]
        np.testing.assert_array_equal(written, [[1000 % 640], [1000]])


@pytest.mark.thorough
class ReadmeTest(absltest.TestCase):
    def test_examples(self) -> None:
        _, step, parallel = _blocks()
        names: dict[str, Any] = {}
        exec(compile(step, str(README), "exec"), names)
        np.testing.assert_array_equal(names["lengths"], 3)
        before = {name: np.asarray(names[name]) for name in ("X", "lengths")}
        K_caches = [np.asarray(cache) for cache in names["K_caches"]]
        V_caches = [np.asarray(cache) for cache in names["V_caches"]]
        for cache in K_caches:
            self.assertTrue((np.abs(cache[..., :3]).sum(axis=(1, 2)) > 0).all())
            self.assertFalse(cache[..., 3:].any())
        exec(compile(parallel, str(README), "exec"), names)
        self.assertEqual(names["X"].shape, before["X"].shape)
        self.assertTrue(np.isfinite(names["X"]).all())
        expected = _by_hand(names, before, K_caches, V_caches)
        np.testing.assert_allclose(names["X"], expected, rtol=1e-4, atol=1e-4)


def _by_hand(names: dict[str, Any], before: Any, K: Any, V: Any) -> np.ndarray:
    """The parallel example on one device: the columns of both ranks put into one rank's order."""
    q, k, d, L = (names[name] for name in "qkdL")
    weights = dict(names["weights"])
    half = (q + 2 * k) * d // 2

    def whole(packed: Any) -> Any:
        ranks = [np.asarray(packed)[:, :half], np.asarray(packed)[:, half:]]
        cuts = [q * d // 2, (q + k) * d // 2]
        parts = [np.split(rank, cuts, axis=1) for rank in ranks]
        joined = [np.concatenate(part, axis=1) for part in zip(*parts, strict=True)]
        return pack_qkv(*joined, d)

    weights["W_qkvs"] = [whole(layer) for layer in weights["W_qkvs"]]
    cos, sin = rope.rope_tables(before["lengths"][:, None], d)
    out = jax_tkg.transformer_tkg(
        before["X"],
        **weights,
        K_caches=K,
        V_caches=V,
        RoPE_cos=cos,
        RoPE_sin=sin,
        mask_cache=masks.cache_mask(before["lengths"], names["S_max"], q, 1),
        mask_active=masks.active_mask(1, names["B"], q),
        position_ids=before["lengths"][:, None],
        num_layers=L,
    )
    return np.asarray(out.hidden)


if __name__ == "__main__":
    absltest.main()
