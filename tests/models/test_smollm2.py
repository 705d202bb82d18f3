"""SmolLM2-135M-Instruct, judged by transformers on the same GGUF file."""

from __future__ import annotations

import dataclasses
import functools
import gc
import pathlib
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.models import default_model as find
from jax_tkg.models.checkpoint import Checkpoint, open_checkpoint
from jax_tkg.models.decode import Decoder
from jax_tkg.models.packing import PackedModel
from tests.models import devices

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    # Its programs run longer than they compile.
    pytest.mark.compilation("full"),
    pytest.mark.usefixtures("programs_of_this_run"),
]

QUESTIONS = (
    "What is the capital of France?",
    "Write a short story about a lighthouse keeper.",
    "Explain in one sentence why the sky is blue.",
    "List three prime numbers.",
    "Translate 'good morning' into Spanish.",
)
TEXT = """The lighthouse at the end of the bay was built in 1874, when 23 ships had been lost on
the rocks within a single winter. Its keeper climbed 199 steps each evening to light the lamp, and
each morning climbed down again to sleep. He wrote everything into a book: the wind, the height of
the waves, the names of passing vessels, and now and then a line that had nothing to do with the
sea. "Today," he wrote in March of 1881, "a letter came from my brother in Canada. He asks whether
I am lonely. I do not know how to answer him, for the gulls are loud and the stove is warm." When
the lamp was replaced by an electric one, the book was given to the town's museum, where it lay in
a drawer for sixty years before anybody read it. The museum's director, a patient woman who had
studied mathematics, noticed that the keeper had measured the tides more precisely than any
instrument of his time; and so, long after his death, his name was printed in a scientific journal,
between a table of figures and a drawing of the moon."""
SHORT = 32
"""Tokens compared for each prompt."""


@functools.cache
def _checkpoint() -> Checkpoint:
    return open_checkpoint(find.default_model())


_decoders: dict[tuple[int, bool, str], Decoder] = {}


def _decoder(ranks: int, stops: bool = False, dtype: str = "float32") -> Decoder:
    """A decoder; the last one is kept until another is asked for, which takes its memory."""
    key = (ranks, stops, dtype)
    if key not in _decoders:
        _forget_decoders()
        _decoders[key] = _new_decoder(*key)
    return _decoders[key]


def _forget_decoders() -> None:
    _decoders.clear()
    gc.collect()


def tearDownModule() -> None:
    _forget_decoders()


def _new_decoder(ranks: int, stops: bool, dtype: str) -> Decoder:
    checkpoint = _checkpoint()
    stop_tokens = checkpoint.tokenizer.stop_tokens if stops else ()
    model = checkpoint.load(dtype, ranks)
    return Decoder(model, 256, devices.mesh(ranks), stop_tokens=stop_tokens)


@functools.cache
def _transformers_model() -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = pathlib.Path(find.default_model())
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@functools.cache
def _transformers_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    path = pathlib.Path(find.default_model())
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def _question(index: int) -> list[int]:
    tokenizer = _checkpoint().tokenizer
    assert tokenizer.chat_template is not None
    messages = [{"role": "user", "content": QUESTIONS[index]}]
    return tokenizer.encode(tokenizer.chat_template.prompt(messages))


@functools.cache
def _answer(index: int) -> list[int]:
    """transformers' greedy tokens, as far as a stop token or `SHORT`."""
    torch = pytest.importorskip("torch")
    prompt = _question(index)
    with torch.no_grad():
        ids = _transformers_model().generate(
            torch.tensor([prompt]), max_new_tokens=SHORT, do_sample=False, eos_token_id=2
        )
    return ids[0, len(prompt) :].tolist()


def _has_number_after_spaces(text: str) -> bool:
    triples = zip("." + text, text, text[1:], strict=False)
    # After one space only a digit of one byte is the same in either order: " " joins no "1", but
    # it does join the first byte of "\u00bc".
    return any(
        b.isspace() and c.isnumeric() and (a.isspace() or not c.isascii()) for a, b, c in triples
    )


@pytest.mark.oracle
class TransformersTest(parameterized.TestCase):
    def test_logits_over_200_tokens(self) -> None:
        torch = pytest.importorskip("torch")
        tokens = _checkpoint().tokenizer.encode(TEXT)[:200]
        self.assertLen(tokens, 200)
        with torch.no_grad():
            expected = _transformers_model()(torch.tensor([tokens])).logits[0].numpy()
        actual = _decoder(1).logits(tokens)
        self.assertLess(np.abs(actual - expected).max(), 1e-3)

    @parameterized.parameters(*range(len(QUESTIONS)))
    def test_greedy_tokens(self, index: int) -> None:
        decoder = _decoder(1, stops=True)
        tokens = decoder.generate(decoder.start([_question(index)]), SHORT)
        self.assertEqual(tokens[0].tolist(), _answer(index))

    @hypothesis.settings(max_examples=400)
    @hypothesis.given(st.text() | st.from_regex(r"( |\n|[a-z]{1,9}|[0-9]{1,6}|[^a-z]|'s){0,30}"))
    def test_tokenizer(self, text: str) -> None:
        # SmolLM2 takes digits out before it splits at spaces, so "  1" is "  " and "1";
        # transformers reads the file as if spaces came first.
        hypothesis.assume(not _has_number_after_spaces(text))
        ids = _checkpoint().tokenizer.encode(text)
        self.assertEqual(ids, _transformers_tokenizer().encode(text, add_special_tokens=False))
        self.assertEqual(
            _checkpoint().tokenizer.decode(ids),
            _transformers_tokenizer().decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
        )

    @parameterized.parameters(None, "You are a pirate.")
    def test_chat_template(self, system: str | None) -> None:
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        template = _checkpoint().tokenizer.chat_template
        assert template is not None
        expected = _transformers_tokenizer().apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        self.assertEqual(template.prompt(messages), expected)


class FileTest(absltest.TestCase):
    """What is read of the file without running the model."""

    def test_question(self) -> None:
        tokenizer = _checkpoint().tokenizer
        text = tokenizer.decode(_question(0))
        self.assertIn(QUESTIONS[0], text)
        self.assertEqual(tokenizer.encode("The capital of France is"), [504, 3575, 282, 4649, 314])


class SameTextTest(parameterized.TestCase):
    """However the work is divided, the text is the same."""

    @pytest.mark.extended
    def test_batch_of_different_lengths(self) -> None:
        self._check_batch(3)

    @pytest.mark.exhaustive
    def test_batch_on_one_device(self) -> None:
        self._check_batch(1)

    def _check_batch(self, ranks: int) -> None:
        prompts = [_question(index) for index in range(4)]
        self.assertGreater(len({len(prompt) for prompt in prompts}), 1)
        alone = _decoder(1, stops=True)
        expected = [_said(alone.generate(alone.start([prompt]), SHORT)[0]) for prompt in prompts]
        # Two would take 3 GB.
        del alone
        decoder = _decoder(ranks, stops=True)
        generated = decoder.generate(decoder.start(prompts), SHORT)
        self.assertEqual([_said(row) for row in generated], expected)
        streamed = np.stack(list(decoder.stream(decoder.start(prompts), SHORT)), axis=1)
        self.assertEqual(streamed.tolist(), generated.tolist())

    @pytest.mark.extended
    def test_answer(self) -> None:
        decoder = _decoder(1, stops=True)
        tokens = _said(decoder.generate(decoder.start([_question(0)]), SHORT)[0])
        self.assertEqual(_checkpoint().tokenizer.decode(tokens), "The capital of France is Paris.")


def _said(row: np.ndarray) -> list[int]:
    return row[row >= 0].tolist()


class SimulatedKernelTest(parameterized.TestCase):
    """The Neuron kernel in the simulator says what the reference says."""

    def setUp(self) -> None:
        super().setUp()
        # That of three ranks takes 2 GB.
        _forget_decoders()

    @pytest.mark.extended
    def test_two_tokens_of_some_layers(self) -> None:
        self._check_tokens(3, 2, layers=6)

    @pytest.mark.exhaustive
    def test_two_tokens(self) -> None:
        self._check_tokens(3, 2)

    @pytest.mark.exhaustive
    def test_four_tokens_of_one_rank(self) -> None:
        self._check_tokens(1, 4)

    def _check_tokens(self, ranks: int, count: int, layers: int | None = None) -> None:
        prompt = _checkpoint().tokenizer.encode("The capital of France is")
        self.assertLessEqual(len(prompt), 8)

        def tokens(ranks: int, implementation: str) -> list[list[int]]:
            model = _first_layers(_checkpoint().load("float32", ranks), layers)
            decoder = Decoder(model, 64, devices.mesh(ranks), implementation=implementation)
            return np.stack(list(decoder.stream(decoder.start([prompt]), count)), axis=1).tolist()

        self.assertEqual(tokens(ranks, "simulate"), tokens(1, "auto"))


def _first_layers(model: PackedModel, count: int | None) -> PackedModel:
    """The model without its layers after the first `count`; None: with all of them."""
    if count is None:
        return model
    config, parameters = model.config, model.parameters
    # Copied, so that the other layers are not kept.
    layers = jax.tree.map(lambda stacked: stacked[:count].copy(), parameters.layers)
    return dataclasses.replace(
        model,
        config=dataclasses.replace(config, num_layers=count, layers=config.layers[:count]),
        parameters=dataclasses.replace(parameters, layers=layers),
    )


class LowPrecisionTest(absltest.TestCase):
    @pytest.mark.extended
    def test_bfloat16_is_close(self) -> None:
        tokens = _checkpoint().tokenizer.encode(TEXT)[:100]
        wide = _decoder(1).logits(tokens)
        narrow = _decoder(1, dtype="bfloat16").logits(tokens)
        # The next token's loss over the text, in nats: a wrong model is off by whole ones.
        self.assertAlmostEqual(_loss(wide, tokens), _loss(narrow, tokens), delta=0.05)


def _loss(logits: np.ndarray, tokens: list[int]) -> float:
    wide = logits[:-1].astype(np.float64)
    largest = wide.max(axis=-1, keepdims=True)
    normalizer = np.log(np.exp(wide - largest).sum(axis=-1)) + largest[:, 0]
    chosen = wide[np.arange(len(tokens) - 1), tokens[1:]]
    return float((normalizer - chosen).mean())


if __name__ == "__main__":
    absltest.main()
