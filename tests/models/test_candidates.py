"""Steps that take the likeliest tokens from the operation, judged by steps with all logits."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jax_tkg.lowering.neuron import lower_for_neuron
from jax_tkg.models import gguf, packing
from jax_tkg.models.decode import NO_TOKEN, Decoder, DecodeState
from jax_tkg.models.forward import ModelForward
from jax_tkg.models.packing import PackedModel
from jax_tkg.models.sampling import MOST_CANDIDATES, Sampling
from jax_tkg.models.speculation import SpeculativeDecoder
from tests.lowering import custom_calls
from tests.models import devices, tiny

pytestmark = pytest.mark.usefixtures("programs_of_this_run")

V = len(tiny.VOCABULARY)
CAPACITY = 128
PROMPTS = [[9], [100], [23]]
"""Of one token each, which a step reads: no program for prompts is compiled."""

SAMPLED = Sampling(2.0, top_k=12, top_p=0.9, min_p=0.02)


@functools.cache
def _packed(ranks: int, tied: bool = True) -> PackedModel:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        tiny.write_tiny(path, tiny.Tiny(num_layers=1, tied=tied))
        return gguf.load(gguf.GgufFile(path), "float32", ranks)


def _model(ranks: int = 1, tied: bool = True, **config: Any) -> PackedModel:
    model = _packed(ranks, tied)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **config))


def _with_head(model: PackedModel, head: np.ndarray) -> PackedModel:
    return dataclasses.replace(model, parameters=dataclasses.replace(model.parameters, head=head))


def _text(decoder: Decoder, count: int = 12) -> list[list[int]]:
    keys = jax.random.split(jax.random.key(3), len(PROMPTS))
    state = decoder.start(PROMPTS, keys)
    return np.stack(list(decoder.stream(state, count)), axis=1).tolist()


def _step(decoder: Decoder, batch: int = 2) -> tuple[Any, DecodeState]:
    """What a step is given, in shapes."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (
        decoder._forward.parameters, decoder._state_shapes(batch, None)
    ))  # fmt: skip
    return shapes


@pytest.mark.thorough
class TextTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("greedy_untied", 1, Sampling(), {"tied": False}),
        # The vocabulary, of 267 tokens, is padded for two ranks.
        ("sampled_and_capped_on_two_ranks", 2, SAMPLED, {"logit_scale": 0.3, "logit_softcap": 2.0}),
    )
    def test_that_of_all_logits(
        self, ranks: int, sampling: Sampling, changes: dict[str, Any]
    ) -> None:
        model, mesh = _model(ranks, **changes), devices.mesh(ranks)
        given, all_logits = (
            Decoder(model, CAPACITY, mesh, sampling, candidates=candidates)
            for candidates in (True, False)
        )
        self.assertEqual(_text(given), _text(all_logits))

    @pytest.mark.extended
    def test_in_the_simulated_kernel(self) -> None:
        """Where it is the default: of one launch with head a token, on two ranks."""
        decoder = Decoder(_model(2), CAPACITY, devices.mesh(2), implementation="simulate")
        plain = Decoder(_model(2), CAPACITY, devices.mesh(2))
        state, want = (one.start(PROMPTS[:1]) for one in (decoder, plain))
        got = [tokens[0] for tokens in decoder.stream(state, 3)]
        self.assertEqual(got, [tokens[0] for tokens in plain.stream(want, 3)])

    @pytest.mark.extended
    def test_with_drafts(self) -> None:
        """Drafts that hold, more and more of them."""
        said = []
        for candidates in (True, False):
            decoder = SpeculativeDecoder(
                _model(), CAPACITY, num_drafts=3, sampling=SAMPLED, candidates=candidates
            )
            drafts, rows = np.zeros((2, 3), np.int32), []
            for count in range(4):
                keys = jax.random.split(jax.random.key(5), 2)
                state = decoder._state(keys, [7, 8], *decoder._forward.caches(2))
                _, tokens = decoder._verify(
                    decoder._forward.parameters,
                    state,
                    drafts,
                    np.full(2, count, np.int32),
                    S_ctx=CAPACITY,
                )
                rows.append(np.array(tokens))
                drafts = np.maximum(rows[-1][:, :3], 0)
            said.append(np.stack(rows))
        np.testing.assert_array_equal(*said)
        self.assertTrue((said[0][-1] != NO_TOKEN).all())


@pytest.mark.thorough
class ScoresTest(parameterized.TestCase):
    """One call, whose head is made so that the logits are known."""

    def _scores(self, forward: ModelForward, count: int | None) -> Any:
        @jax.jit
        def run(parameters: Any, K_caches: Any, V_caches: Any) -> Any:
            ones = jnp.ones(1, jnp.int32)
            scores, *_ = forward.scores(
                parameters, 3 * ones[:, None], 0 * ones, ones, K_caches, V_caches, 8, count
            )
            return scores

        return run(forward.parameters, *forward.caches(1))

    def test_padding_is_never_chosen(self) -> None:
        """Where all logits are negative, equal, or no numbers; 45 columns on each of six ranks."""
        ranks = 6
        model = _model(ranks, tied=False)
        columns = model.parameters.head.shape[1]
        self.assertEqual(columns, -(-V // ranks) * ranks)
        self.assertTrue(np.isnan(model.parameters.head[:, V:]).all())
        plain = ModelForward(_model(1, tied=False), capacity=16)
        direction = np.zeros((model.hidden_size, V), np.float32)
        # Logits of unit vectors tell the signs of the normalized hidden state.
        direction[:, : model.config.hidden_size] = np.eye(*direction.shape)[:, :96]
        plain.place(_with_head(_model(1, tied=False), direction))
        normed = np.asarray(self._scores(plain, None).logits)[0, 0, : model.hidden_size]
        opposite = -np.sign(np.resize(normed, model.hidden_size))
        order = np.random.default_rng(0).permutation(V)
        forward = ModelForward(model, devices.mesh(ranks), capacity=16, candidates=True)
        for size, expected in (
            (order + 1.0, np.argsort(order)),
            (np.ones(V), np.arange(V)),
            (np.full(V, np.nan), np.arange(V)),
        ):
            head = np.full((model.hidden_size, columns), np.nan, np.float32)
            head[:, :V] = opposite[:, None] * size
            forward.place(_with_head(model, head))
            scores = self._scores(forward, V + 5)
            self.assertEqual(np.asarray(scores.ids)[0, 0].tolist(), expected.tolist())
            self.assertEqual(int(self._scores(forward, 1).ids.item()), expected[0])
            logits = np.asarray(scores.logits)
            self.assertTrue((logits < 0).all())
            if not np.isnan(size[0]):
                every = np.asarray(self._scores(forward, None).logits)
                np.testing.assert_allclose(logits, -np.sort(-every), rtol=1e-5)


class ProgramTest(parameterized.TestCase):
    """What a step lowers to."""

    def _lowered(self, decoder: Decoder) -> Any:
        step = functools.partial(decoder._traced_step, S_ctx=CAPACITY)
        return lower_for_neuron(step, *_step(decoder))

    def _check(self, decoder: Decoder, products: int) -> Any:
        """Checks that a step is one launch with so many products beside it."""
        lowered = self._lowered(decoder)
        self.assertLen(custom_calls.calls(lowered), 1)
        self.assertEqual(lowered.as_text().count("dot_general"), products)
        return lowered

    def test_a_greedy_step_is_one_launch(self) -> None:
        """With no product, sort or search beside it."""
        decoder = Decoder(_model(), CAPACITY, implementation="nki")
        lowered = self._check(decoder, products=0)
        for operation in ("stablehlo.sort", "top_k"):
            self.assertNotIn(operation, lowered.as_text())
        (call,) = custom_calls.calls(lowered)
        results = [str(result.type) for result in call.results]
        self.assertEqual(results[-2:], ["tensor<2x1x1xf32>", "tensor<2x1x1xi32>"])
        every = Decoder(_model(), CAPACITY, implementation="nki", candidates=False)
        self._check(every, products=1)

    def test_on_two_ranks(self) -> None:
        decoder = Decoder(_model(2), CAPACITY, devices.mesh(2), implementation="nki")
        self._check(decoder, products=0)

    @parameterized.parameters((SAMPLED, 0), (Sampling(1.0, top_k=MOST_CANDIDATES + 1), 1))
    def test_sampled(self, sampling: Sampling, products: int) -> None:
        decoder = Decoder(_model(), CAPACITY, sampling=sampling, implementation="nki")
        self._check(decoder, products)

    @parameterized.parameters((8, 0), (64, 1))
    def test_within_the_limits_of_the_kernel(self, top_k: int, products: int) -> None:
        """Of a large vocabulary, few candidates have room on chip."""
        config = dataclasses.replace(_model().config, vocabulary_size=1 << 17)
        model = packing.outline(config, "float32", 1, True)
        sampling = Sampling(1.0, top_k=top_k)
        self._check(Decoder(model, CAPACITY, sampling=sampling, implementation="nki"), products)

    @parameterized.parameters("auto", "reference", "cpu")
    def test_not_the_default_on_cpus(self, implementation: str) -> None:
        forward = ModelForward(_model(), capacity=16, implementation=implementation)
        self.assertFalse(forward.takes_candidates)

    def test_operation_of_a_traced_step(self) -> None:
        """One call of the operation, and no other product of the hidden states."""
        decoder = Decoder(_model(), CAPACITY, candidates=True)
        step = functools.partial(decoder._traced_step, S_ctx=CAPACITY)
        names = [one.primitive.name for one in jax.make_jaxpr(step)(*_step(decoder)).eqns]
        self.assertEqual(names.count("transformer_tkg"), 1)
        self.assertNotIn("dot_general", names)


if __name__ == "__main__":
    absltest.main()
