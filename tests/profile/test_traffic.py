from absl.testing import absltest, parameterized

from jax_tkg.profile.traffic import KINDS, kind_of


class KindOfTest(parameterized.TestCase):
    @parameterized.parameters(
        ("W_gates[3]", "weights"),
        ("W_gamma_mlps[0]", "weights"),
        ("W_down_scales[1]", "weights"),
        ("K_caches[0]", "cache"),
        ("V_caches", "cache"),
        ("prior_mask", "other"),
        ("mask_cache", "other"),
        ("X", "activations"),
        ("", "activations"),
        ("L0_attn_residual", "activations"),
    )
    def test_kind(self, name, kind):
        self.assertEqual(kind_of(name), kind)
        self.assertIn(kind, KINDS)

    @parameterized.parameters(
        ("W_gates[3]", "experts"),
        ("bias_downs[0]", "experts"),
        ("W_up_scales[0]", "experts"),
        ("W_routers[0]", "router"),
        ("bias_routers[0]", "router"),
        ("W_shared_ups[0]", "weights"),
        ("W_qkvs[0]", "weights"),
    )
    def test_kind_with_experts(self, name, kind):
        self.assertEqual(kind_of(name, experts=True), kind)


if __name__ == "__main__":
    absltest.main()
