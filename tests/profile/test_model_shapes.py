from absl.testing import absltest, parameterized

from jax_tkg.profile.layer import bound, required_bytes
from jax_tkg.profile.model_shapes import MODELS, Case, rank_sizes


class RankSizesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("llama3_70b", 8, {"H": 8192, "I": 3584, "d": 128, "q": 8, "k": 1}),
        ("llama3_70b", 16, {"H": 8192, "I": 1792, "d": 128, "q": 4, "k": 1}),
        ("llama3_70b", 32, {"H": 8192, "I": 896, "d": 128, "q": 2, "k": 1}),
        ("llama3_8b", 1, {"H": 4096, "I": 14336, "d": 128, "q": 32, "k": 8}),
        ("llama3_8b", 4, {"H": 4096, "I": 3584, "d": 128, "q": 8, "k": 2}),
        ("llama3_8b", 32, {"H": 4096, "I": 512, "d": 128, "q": 1, "k": 1}),
    )
    def test_sizes(self, model, ranks, expected):
        self.assertEqual(rank_sizes(MODELS[model], ranks), expected)

    @parameterized.parameters(0, 3, 128)
    def test_heads_that_do_not_divide(self, ranks):
        with self.assertRaisesRegex(ValueError, f"tensor_parallel={ranks}: expected"):
            rank_sizes(MODELS["llama3_70b"], ranks)


class BytesTest(absltest.TestCase):
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

    def test_unknown_dtype(self):
        with self.assertRaisesRegex(ValueError, "quantized_mlp='int8': expected one of"):
            self._case(quantized_mlp="int8")


if __name__ == "__main__":
    absltest.main()
