"""AWS's MLP on the simulator: its token-generation path, plain and with float8 weights."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from tests.nkilib import cases, library

library.require()

_EACH = [(dtype, lnc) for dtype in library.DTYPES for lnc in (1, 2)]


def _arguments(size, found):
    return {
        "hidden_tensor": found["X"],
        "gate_proj_weights_tensor": found["W_gates"][0],
        "up_proj_weights_tensor": found["W_ups"][0],
        "down_proj_weights_tensor": found["W_downs"][0],
        "normalization_weights_tensor": found["W_gamma_mlps"][0],
        "normalization_type": library.module("core.utils.common_types").NormType.RMS_NORM,
        "use_tkg_down_proj_column_tiling": False,
    }


def _run(arguments, lnc):
    kernel = library.module("core.mlp.mlp").mlp
    result = simulator.run(kernel, [arguments], lnc=lnc, target="trn2")
    output = result.outputs[0]
    return output[0] if isinstance(output, (list, tuple)) else output


def _reference(found, size, quantized):
    module = library.module("experimental.transformer.transformer_tkg_torch")
    names = ["X", "W_gamma_mlps", "W_gates", "W_ups", "W_downs"]
    names += ["W_gate_scales", "W_up_scales", "W_down_scales"] if quantized else []
    values = [found["X"], *(found[name][0] for name in names[1:])]
    tensors = [tensor.float() for tensor in library.to_torch(values)]
    if quantized:
        result = module.quantized_mlp_torch(*tensors, 1e-6, 0.0, 1, False)
    else:
        result = module.mlp_torch(*tensors, 1e-6, 1, False)
    return library.to_numpy(result)


class MlpTest(parameterized.TestCase):
    @parameterized.parameters(*((d, lnc, c) for d, lnc in _EACH for c in (True, False)))
    def test_plain(self, dtype, lnc, column_tiling):
        size = cases.Size(B=4, H=1024, I=512)
        found = cases.arguments(size, library.DTYPES[dtype])
        arguments = _arguments(size, found)
        arguments["use_tkg_gate_up_proj_column_tiling"] = column_tiling
        output = _run(arguments, lnc)
        library.assert_agrees(output, _reference(found, size, False), dtype)

    @parameterized.parameters(1, 2)
    def test_row_quantized(self, lnc):
        types = library.module("core.utils.common_types")
        size = cases.Size(B=4, H=1024, I=512)
        found = cases.arguments(size, library.DTYPES["bfloat16"], quantized=(0,))
        arguments = {
            **_arguments(size, found),
            "quantization_type": types.QuantizationType.ROW,
            "gate_w_scale": found["W_gate_scales"][0],
            "up_w_scale": found["W_up_scales"][0],
            "down_w_scale": found["W_down_scales"][0],
        }
        output = _run(arguments, lnc)
        library.assert_agrees(output, _reference(found, size, True), "bfloat16")

    def test_float32_activations_with_float8_weights_are_refused(self):
        # The documentation of nc_matmul allows float32 only with float32.
        types = library.module("core.utils.common_types")
        size = cases.Size(B=4, H=1024, I=512)
        found = cases.arguments(size, np.float32, quantized=(0,))
        arguments = {
            **_arguments(size, found),
            "quantization_type": types.QuantizationType.ROW,
            "gate_w_scale": found["W_gate_scales"][0],
            "up_w_scale": found["W_up_scales"][0],
            "down_w_scale": found["W_down_scales"][0],
        }
        with self.assertRaisesRegex(simulator.NkiValidationError, "float32.*float8_e4m3"):
            _run(arguments, 1)
