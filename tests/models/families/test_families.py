"""Every family, judged by transformers: chunks of a prompt, single steps, GGUF files, two ranks.

The long chunks of `jax_tkg.prefill` too.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import gguf, safetensors
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.decode import Decoder
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.packing import PackedModel
from tests.models import devices, files
from tests.models.families import gguf_files
from tests.models.families.tiny_families import FAMILIES, Family, tokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.oracle

GIVEN, CHOSEN = 136, 64
"""Tokens of the text that are given, and those after them that the model chooses."""

CAPACITY = 256
CHUNK = 8

LONG_CHUNK = 140
"""More tokens than a ring of these families has slots; two of them are more than the text."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """What transformers makes of a text.

    Attributes:
      tokens: [n], the given ones, then the greedy choice after each.
      logits: [n, V] after each.
    """

    tokens: np.ndarray
    logits: np.ndarray


def _expected(model: Any) -> Expected:
    # More threads cost more than they bring, at these sizes.
    torch.set_num_threads(1)
    text = torch.tensor([tokens(GIVEN)])
    with torch.no_grad():
        cache = None
        step = text
        for _ in range(CHOSEN):
            result = model(step, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            step = result.logits[:, -1:].argmax(-1)
            text = torch.cat([text, step], dim=1)
        logits = model(text).logits[0]
    return Expected(text[0].numpy(), logits.numpy())


def _chunks(forward: ModelForward, text: np.ndarray) -> np.ndarray:
    """Logits [n, V] of a text that is read `CHUNK` tokens a call."""

    @jax.jit
    def run(parameters: Any, caches: Any, chunks: jax.Array) -> jax.Array:
        def body(state: Any, chunk: jax.Array) -> Any:
            length, caches = state
            lengths, counts = jnp.full((1,), length), jnp.full((1,), CHUNK)
            hidden, *caches = forward.hidden(
                parameters, chunk[None], lengths, counts, *caches, CAPACITY
            )
            return (length + CHUNK, tuple(caches)), forward.logits(parameters, hidden)[0]

        return jax.lax.scan(body, (jnp.int32(0), caches), chunks)[1]

    chunks = jnp.asarray(text, jnp.int32).reshape(-1, CHUNK)
    return np.concatenate(run(forward.parameters, forward.caches(1), chunks))


def _prefilled(forward: ModelForward, text: np.ndarray) -> np.ndarray:
    """Logits [n, V] of a text that is read `LONG_CHUNK` tokens at once, the last ones padded."""

    @jax.jit
    def run(parameters: Any, caches: Any, tokens: jax.Array, length: int, count: int) -> Any:
        lengths, counts = jnp.full((1,), length), jnp.full((1,), count)
        hidden, *caches = forward.prefill(parameters, tokens[None], lengths, counts, *caches)
        return forward.logits(parameters, hidden)[0], tuple(caches)

    caches, rows = forward.caches(1), []
    for start in range(0, len(text), LONG_CHUNK):
        piece = text[start : start + LONG_CHUNK]
        padded = np.pad(piece, (0, LONG_CHUNK - len(piece))).astype(np.int32)
        logits, caches = run(forward.parameters, caches, padded, start, len(piece))
        rows.append(logits[: len(piece)])
    return np.concatenate(rows)


def _steps(forward: ModelForward, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n] and logits [n, V] where each call reads one token and chooses the next."""

    @jax.jit
    def run(parameters: Any, caches: Any, given: jax.Array) -> Any:
        def body(state: Any, given_token: jax.Array) -> Any:
            length, token, caches = state
            token = jnp.where(length < GIVEN, given_token, token)
            lengths, counts = jnp.full((1,), length), jnp.ones((1,), jnp.int32)
            hidden, *caches = forward.hidden(
                parameters, token[None, None], lengths, counts, *caches, CAPACITY
            )
            logits = forward.logits(parameters, hidden)[0, 0]
            chosen = jnp.argmax(logits).astype(jnp.int32)
            return (length + 1, chosen, tuple(caches)), (token, logits)

        start = (jnp.int32(0), jnp.int32(0), caches)
        return jax.lax.scan(body, start, given)[1]

    padded = jnp.asarray(np.pad(given, (0, CHOSEN)), jnp.int32)
    read, logits = run(forward.parameters, forward.caches(1), padded)
    return np.asarray(read), np.asarray(logits)


class FamiliesTest(parameterized.TestCase):
    @parameterized.named_parameters(FAMILIES.items())
    def test_equal_transformers(self, family: Family) -> None:
        folder = files.folder(self)
        model = family.model()
        model.save_pretrained(folder)
        expected = _expected(model)
        forward = ModelForward(safetensors.load(folder, "float32"), capacity=CAPACITY)
        with self.subTest("steps"):
            text, logits = _steps(forward, expected.tokens[:GIVEN])
            self.assertEqual(text.tolist(), expected.tokens.tolist())
            self.assert_close(logits, expected.logits)
        with self.subTest("chunks on two ranks"):
            packed = safetensors.load(folder, "float32", 2)
            split = ModelForward(packed, devices.mesh(2), capacity=CAPACITY)
            self.assert_close(_chunks(split, expected.tokens), expected.logits)
        if family.architecture is not None:
            with self.subTest("gguf"):
                path = folder / "model.gguf"
                gguf_files.write(path, model, family.architecture)
                self.assert_same(path, forward.model)

    @parameterized.parameters("gemma2", "gpt_oss")
    def test_prefill_equals_transformers(self, name: str) -> None:
        """Post norms, soft caps and head sizes; sinks, biases and experts; windows in rings."""
        self._check_prefill(FAMILIES[name])

    @parameterized.named_parameters(
        (name, family) for name, family in FAMILIES.items() if name not in ("gemma2", "gpt_oss")
    )
    @pytest.mark.exhaustive
    def test_prefill_of_every_other_family(self, family: Family) -> None:
        self._check_prefill(family)

    def _check_prefill(self, family: Family) -> None:
        folder = files.folder(self)
        model = family.model()
        model.save_pretrained(folder)
        expected = _expected(model)
        split = ModelForward(
            safetensors.load(folder, "float32", 2), devices.mesh(2), capacity=CAPACITY
        )
        self.assert_close(_prefilled(split, expected.tokens), expected.logits)

    def test_decoder_on_two_ranks(self) -> None:
        """The loop that users run, with caches of two kinds."""
        folder = files.folder(self)
        model = FAMILIES["gemma3"].model()
        model.save_pretrained(folder)
        expected = _expected(model).tokens
        decoder = Decoder(safetensors.load(folder, "float32", 2), CAPACITY, devices.mesh(2))
        chosen = decoder.generate(decoder.start([expected[:GIVEN].tolist()]), CHOSEN)
        self.assertEqual(chosen[0].tolist(), expected[GIVEN:].tolist())

    def assert_close(self, actual: np.ndarray, expected: np.ndarray) -> None:
        self.assertLess(np.abs(actual - expected).max(), 1e-4 * np.abs(expected).max())

    def assert_same(self, path: pathlib.Path, model: PackedModel) -> None:
        """A GGUF file gives the model that the folder gives."""
        loaded = gguf.load(gguf.GgufFile(path), "float32")
        np.testing.assert_allclose(
            _numbers(loaded.config), _numbers(model.config), rtol=1e-6, atol=0
        )
        self.assertEqual(_words(loaded.config), _words(model.config))
        self.assertEqual(
            jax.tree.structure(loaded.parameters), jax.tree.structure(model.parameters)
        )
        for actual, expected in zip(
            jax.tree.leaves(loaded.parameters), jax.tree.leaves(model.parameters), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


class SimulatedKernelTest(parameterized.TestCase):
    @parameterized.named_parameters(FAMILIES.items())
    def test_one_layer_or_two(self, family: Family) -> None:
        """The Neuron kernel computes layers as transformers does; where they differ by experts, and
        of Gemma 2, both kinds."""
        folder = files.folder(self)
        differ = family.name == "Gemma2" or "mlp_only_layers" in family.changes
        changes = family.changes | {"num_hidden_layers": 2 if differ else 1}
        if "original_max_position_embeddings" in changes:
            # This text is long, as the capacity is.
            changes["original_max_position_embeddings"] = CHUNK
        model = dataclasses.replace(family, changes=changes).model()
        model.save_pretrained(folder)
        text = tokens(2 * CHUNK)
        with torch.no_grad():
            expected = model(torch.tensor([text])).logits[0].numpy()
        packed = safetensors.load(folder, "float32")
        forward = ModelForward(packed, implementation="simulate", capacity=CAPACITY)
        run = jax.jit(lambda *arguments: forward.hidden(*arguments, CAPACITY))
        caches, rows = forward.caches(1), []
        counts = jnp.full((1,), CHUNK)
        for start in range(0, len(text), CHUNK):
            chunk = jnp.asarray([text[start : start + CHUNK]], jnp.int32)
            lengths = jnp.full((1,), start)
            hidden, *caches = run(forward.parameters, chunk, lengths, counts, *caches)
            rows.append(forward.logits(forward.parameters, hidden)[0])
        actual = np.concatenate(rows)
        self.assertLess(np.abs(actual - expected).max(), 1e-4 * np.abs(expected).max())


def _numbers(config: ModelConfig) -> list[float]:
    """The floats of a configuration, which GGUF files hold in float32."""
    floats = [v for v in dataclasses.asdict(config).values() if isinstance(v, float)]
    for kind in config.kinds:
        rope = kind.rope
        floats += [*rope.frequencies, *rope.long_frequencies, rope.concentration]
    # None and head_size**-0.5 are the same scale.
    return [*floats, config.softmax_scale or config.head_size**-0.5]


def _words(config: ModelConfig) -> dict[str, Any]:
    """Everything else."""
    fields = dataclasses.asdict(config)
    rest = {k: v for k, v in fields.items() if not isinstance(v, float)}
    del rest["layers"], rest["vocabulary_size"]
    rest.pop("softmax_scale", None)
    return rest | {
        "layer_kinds": config.layer_kinds,
        "windows": [(kind.window, len(kind.rope.frequencies)) for kind in config.kinds],
    }


if __name__ == "__main__":
    absltest.main()
