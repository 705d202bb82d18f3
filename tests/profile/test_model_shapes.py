import dataclasses

from absl.testing import absltest, parameterized

from jax_tkg.call.options import OPTION_NAMES
from jax_tkg.profile.layer import bound, required_bytes
from jax_tkg.profile.model_shapes import (
    MODELS,
    Case,
    LayerKind,
    ModelShape,
    layer_case,
    rank_sizes,
)


class RankSizesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("llama3_70b", 8, {"H": 8192, "I": 3584, "d": 128, "q": 8, "k": 1}),
        ("llama3_70b", 16, {"H": 8192, "I": 1792, "d": 128, "q": 4, "k": 1}),
        ("llama3_70b", 32, {"H": 8192, "I": 896, "d": 128, "q": 2, "k": 1}),
        ("llama3_8b", 1, {"H": 4096, "I": 14336, "d": 128, "q": 32, "k": 8}),
        ("llama3_8b", 4, {"H": 4096, "I": 3584, "d": 128, "q": 8, "k": 2}),
        ("llama3_8b", 32, {"H": 4096, "I": 512, "d": 128, "q": 1, "k": 1}),
        ("gemma2_9b", 8, {"H": 3584, "I": 1792, "d": 256, "q": 2, "k": 1}),
        ("gemma3_27b", 8, {"H": 5376, "I": 2688, "d": 128, "q": 4, "k": 2}),
        ("gpt_oss_120b", 8, {"H": 2944, "I": 360, "d": 64, "q": 8, "k": 1}),
    )
    def test_sizes(self, model, ranks, expected):
        self.assertEqual(rank_sizes(MODELS[model], ranks), expected)

    @parameterized.parameters(0, 3, 128)
    def test_heads_that_do_not_divide(self, ranks):
        with self.assertRaisesRegex(ValueError, f"tensor_parallel={ranks}: expected"):
            rank_sizes(MODELS["llama3_70b"], ranks)


class BytesTest(parameterized.TestCase):
    """Llama-3-70B over 8 ranks, by hand."""

    def _case(self, **more):
        return Case(B=4, S=1, S_ctx=1025, **rank_sizes(MODELS["llama3_70b"], 8), **more)

    def test_bfloat16(self):
        weights = 8192 * 10 * 128 + 1024 * 8192 + 3 * 8192 * 3584 + 2 * 8192
        cache = 2 * 4 * 128 * 1024
        self.assertEqual(required_bytes(self._case()), 2 * (weights + cache))

    def test_bound_is_that_of_both_cores(self):
        case = self._case()
        self.assertAlmostEqual(bound(case), required_bytes(case) / 725)

    def test_float8(self):
        mlp = 3 * 8192 * 3584
        scales = 4 * (3584 + 3584 + 8192)
        fewer = required_bytes(self._case()) - required_bytes(
            self._case(quantized_mlp="float8_e4m3")
        )
        self.assertEqual(fewer, mlp - scales)

    def test_float8_caches(self):
        fewer = required_bytes(self._case()) - required_bytes(self._case(cache_dtype="float8_e4m3"))
        self.assertEqual(fewer, 2 * 4 * 128 * 1024)
        with self.assertRaisesRegex(ValueError, "cache_dtype='float8_e5m2': expected one of"):
            self._case(cache_dtype="float8_e5m2")

    def test_only_attended_slots_count(self):
        fewer = required_bytes(self._case()) - required_bytes(self._case(attended=1000))
        self.assertEqual(fewer, 2 * 2 * 4 * 128 * 25)

    @parameterized.parameters(
        ("quantized_mlp", "float8_e4m3 or float8_e5m2"), ("cache_dtype", "float8_e4m3")
    )
    def test_float8_of_another_target(self, name, formats):
        words = f"{name}: expected {formats} on the target trn2, got float8_e4m3fn, which "
        with self.assertRaisesRegex(ValueError, f"{words}needs the target trn3"):
            self._case(**{name: "float8_e4m3fn"})
        self._case(**{name: "float8_e4m3fn", "target": "trn3"})

    def test_unknown_dtype(self):
        with self.assertRaisesRegex(ValueError, "quantized_mlp='int8': expected one of"):
            self._case(quantized_mlp="int8")


class LayersTest(parameterized.TestCase):
    """What the models' published configurations give for one rank."""

    def test_window_layers_read_a_ring(self):
        model = MODELS["gemma3_27b"]
        full, window = model.kinds()
        self.assertEqual((full.layers, window.layers, window.window), (10, 52, 1024))
        sizes = {"tensor_parallel": 8, "context": 10240, "B": 1, "S": 1}
        self.assertEqual(layer_case(model, full, **sizes).S_ctx, 10240)
        case = layer_case(model, window, **sizes)
        self.assertEqual((case.S_ctx, case.attended), (1152, 1024))
        self.assertEqual((case.q, case.k, case.I), (4, 2, 2688))
        self.assertEqual(layer_case(model, window, **{**sizes, "context": 512}).S_ctx, 512)

    def test_optional_operands_are_read(self):
        model = MODELS["qwen2_5_7b"]
        case = layer_case(model, model.kinds()[0], tensor_parallel=4, context=128, B=1, S=1)
        plain = dataclasses.replace(case, operands=())
        self.assertEqual(case.weight_bytes() - plain.weight_bytes(), 2 * (7 + 2) * 128)

    @parameterized.parameters(
        # k = 2 on each of 4 ranks; a KV head for each of 8; 2 ranks with each.
        (4, 2, 1),
        (8, 8, 1),
        (16, 4, 2),
        (16, 0, 2),
    )
    def test_ranks_without_a_kv_head_in_common(self, ranks, count, copies):
        model = ModelShape(2, 512, 512, 16, 8, 64)
        sizes = {"tensor_parallel": ranks, "context": 2048, "B": 1, "S": 1}
        words = f"context_parallel: expected a divisor of the {copies} ranks .*, got {count}$"
        with self.assertRaisesRegex(ValueError, words):
            layer_case(model, LayerKind(2), context_parallel=count, **sizes)

    def test_ranks_with_a_kv_head_in_common(self):
        model = ModelShape(2, 512, 512, 16, 8, 64)
        sizes = {"tensor_parallel": 16, "context": 2048, "B": 1, "S": 1}
        case = layer_case(model, LayerKind(2), context_parallel=2, **sizes)
        self.assertEqual((case.k, case.S_max, case.context_parallel), (1, 1024, 2))

    def test_kv_heads_that_do_not_divide(self):
        model = MODELS["phi4_14b"]
        with self.assertRaisesRegex(ValueError, "tensor_parallel=8: .* 10 KV heads"):
            layer_case(model, model.kinds()[0], tensor_parallel=8, context=128, B=1, S=1)

    @parameterized.parameters(*MODELS)
    def test_every_model_is_whole(self, name):
        model = MODELS[name]
        self.assertEqual(sum(kind.layers for kind in model.kinds()), model.layers)
        rows = layer_case(model, model.kinds()[0], tensor_parallel=1, context=128, B=1, S=1).rows()
        self.assertContainsSubset(model.operands, [row.name for row in rows])
        self.assertContainsSubset([name for name, _ in model.options], OPTION_NAMES)


if __name__ == "__main__":
    absltest.main()
