"""The Python of docs/serving.md runs as it stands, and serves what it should."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

import jax_tkg
from jax_tkg import caches, masks, rope
from jax_tkg.models import default_model
from tests.models import files, tiny

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("programs_of_this_run"),
]

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "serving.md"


def _run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, str(PAGE), "exec"), names)


class ServingPageTest(absltest.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

    def test_running_batch(self) -> None:
        """With a tiny model in place of the default one."""
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path)
        names: dict[str, Any] = {}
        with mock.patch.object(default_model, "default_model", return_value=path):
            _run(self.blocks[0], names)
        self.assertEqual(names["batch"].free_slots, 4)
        self.assertLen(names["texts"], 3)
        for text in names["texts"].values():
            self.assertRegex(
                text, r"(?s)^(The capital of France is|One, two, three,|Water boils at)."
            )

    @pytest.mark.extended
    def test_loop(self) -> None:
        """More requests than slots, each with the answer that it has alone, step by step."""
        _, weights, loop = self.blocks
        self.assertLessEqual(len([line for line in loop.splitlines() if line.strip()]), 30)
        names: dict[str, Any] = {}
        _run(weights, names)
        _run(loop, names)
        rng = np.random.default_rng(0)
        requests = [
            (f"request {length}", rng.integers(0, names["V"], length).tolist(), 1 + length % 7)
            for length in (9, 1, 30, 3, 140, 2, 12)
        ]
        answers: dict[str, list[int]] = {}
        for name, token in names["serve"](requests):
            answers.setdefault(name, []).append(token)
        # The shortest answer ends first, and the fifth request enters in its place.
        self.assertCountEqual(answers, [name for name, *_ in requests])
        alone = _alone(names)
        for name, prompt, most in requests:
            self.assertEqual(answers[name], alone(prompt, most), name)


def _alone(names: dict[str, Any]) -> Callable[[list[int], int], list[int]]:
    """Answers one sequence that is read token by token, with masks."""
    L, q, k, d, S_max = (names[name] for name in ("L", "q", "k", "d", "S_max"))
    embedding, weights = names["embedding"], names["weights"]

    @jax.jit
    def step(cached: Any, token: Any, length: Any) -> Any:
        cos, sin = rope.rope_tables(length[:, None], d)
        hidden, *cached = jax_tkg.transformer_tkg(
            embedding[token][None, None],
            **weights,
            K_caches=cached[0],
            V_caches=cached[1],
            RoPE_cos=cos,
            RoPE_sin=sin,
            mask_cache=masks.cache_mask(length, S_max, q, 1),
            mask_active=masks.active_mask(1, 1, q),
            position_ids=length[:, None],
        )
        return cached, jnp.argmax(hidden[0, 0] @ embedding.T)

    def answer(prompt: list[int], most: int) -> list[int]:
        cached = caches.allocate_caches(L, B=1, k=k, d=d, S_max=S_max, dtype=jnp.float32)
        text = list(prompt)
        for position in range(len(prompt) + most - 1):
            cached, token = step(cached, text[position], np.asarray([position]))
            if position + 1 == len(text):
                text.append(int(token))
        return text[len(prompt) :]

    return answer


if __name__ == "__main__":
    absltest.main()
