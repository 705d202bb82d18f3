"""AWS's context-encoding (prefill) kernels on the simulator, against float64.

They compute partly in bfloat16 whatever the inputs' dtype, so the tolerance is 1% throughout.
"""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from tests.nkilib import library

library.require()

_EACH = [(dtype, lnc) for dtype in library.DTYPES for lnc in (1, 2)]
_TOLERANCE = 1e-2
_S, _H, _I, _D = 512, 1024, 512, 128


def _run(kernel, arguments, lnc):
    result = simulator.run(kernel, [arguments], lnc=lnc, target="trn2")
    output = result.outputs[0]
    return output[0] if isinstance(output, (list, tuple)) else output


class PrefillTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.g = np.random.default_rng(0)

    def _check(self, output, expected):
        error = library.relative_error(output.astype(np.float32), expected.reshape(output.shape))
        self.assertLess(error, _TOLERANCE)

    def _norm(self, x, gamma):
        wide = x.astype(np.float64)
        return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * gamma.astype(np.float64)

    @parameterized.parameters(*_EACH)
    def test_attention(self, dtype, lnc):
        kernel = library.module("core.attention.attention_cte").attention_cte
        kind = library.DTYPES[dtype]
        q = library.uniform(self.g, (2, _S, _D), kind)
        k = library.uniform(self.g, (2, _D, _S), kind)
        v = library.uniform(self.g, (2, _S, _D), kind)
        output = _run(kernel, {"q": q, "k": k, "v": v, "scale": _D**-0.5}, lnc)
        scores = q.astype(np.float64) @ k.astype(np.float64) * _D**-0.5
        scores = np.where(np.tri(_S, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        self._check(output, weights / weights.sum(-1, keepdims=True) @ v.astype(np.float64))

    @parameterized.parameters(*_EACH)
    def test_qkv(self, dtype, lnc):
        kernel = library.module("core.qkv.qkv_cte").qkv_cte
        norm = library.module("core.utils.common_types").NormType.RMS_NORM
        kind = library.DTYPES[dtype]
        x = library.uniform(self.g, (1, _S, _H), kind)
        weights = library.normal(self.g, (_H, 6 * _D), kind, _H**-0.5)
        gamma = library.uniform(self.g, (1, _H), kind, 0.5, 1.5)
        arguments = {
            "input": x,
            "fused_qkv_weights": weights,
            "fused_norm_type": norm,
            "gamma_norm_weights": gamma,
            "d_head": _D,
            "num_q_heads": 4,
            "num_kv_heads": 1,
        }
        expected = self._norm(x, gamma) @ weights.astype(np.float64)
        self._check(_run(kernel, arguments, lnc), expected)

    @parameterized.parameters(*_EACH)
    def test_mlp(self, dtype, lnc):
        kernel = library.module("core.mlp.mlp").mlp
        norm = library.module("core.utils.common_types").NormType.RMS_NORM
        kind = library.DTYPES[dtype]
        x = library.uniform(self.g, (1, _S, _H), kind)
        gate = library.normal(self.g, (_H, _I), kind, _H**-0.5)
        up = library.normal(self.g, (_H, _I), kind, _H**-0.5)
        down = library.normal(self.g, (_I, _H), kind, _I**-0.5)
        gamma = library.uniform(self.g, (1, _H), kind, 0.5, 1.5)
        arguments = {
            "hidden_tensor": x,
            "gate_proj_weights_tensor": gate,
            "up_proj_weights_tensor": up,
            "down_proj_weights_tensor": down,
            "normalization_weights_tensor": gamma,
            "normalization_type": norm,
        }
        normed = self._norm(x, gamma)
        g = normed @ gate.astype(np.float64)
        expected = g / (1 + np.exp(-g)) * (normed @ up.astype(np.float64)) @ down.astype(np.float64)
        self._check(_run(kernel, arguments, lnc), expected)

    @parameterized.parameters(1, 2)
    def test_output_projection(self, lnc):
        package = "core.output_projection.output_projection_cte.output_projection_cte"
        kernel = library.module(package).output_projection_cte
        kind = library.DTYPES["bfloat16"]
        heads = library.uniform(self.g, (1, 4, _D, _S), kind)
        weights = library.normal(self.g, (4 * _D, _H), kind, 0.05)
        output = _run(kernel, {"attention": heads, "weight": weights}, lnc)
        rows = heads.astype(np.float64)[0].transpose(2, 0, 1).reshape(_S, 4 * _D)
        self._check(output, rows @ weights.astype(np.float64))

    def test_cascaded_max(self):
        kernel = library.module("core.max.cascaded_max").cascaded_max
        x = library.uniform(self.g, (8, 4096), np.float32)
        output = _run(kernel, {"input_tensor": x}, 2)
        np.testing.assert_array_equal(output.reshape(-1), x.max(axis=-1))
