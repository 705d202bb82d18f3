"""AWS's smaller kernels on the simulator, against AWS's PyTorch references."""

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from tests.nkilib import library

library.require()

import nki.isa as nisa  # noqa: E402
import nki.language as nl  # noqa: E402

_EACH = [(dtype, lnc) for dtype in library.DTYPES for lnc in (1, 2)]


def _run(kernel, arguments, lnc, target="trn2"):
    return simulator.run(kernel, [arguments], lnc=lnc, target=target)


class CumsumTest(parameterized.TestCase):
    @parameterized.product(dtype=list(library.DTYPES), shape=[(130, 2100), (2, 3, 64)])
    def test_agrees(self, dtype, shape):
        kernel = library.module("core.cumsum.cumsum").cumsum
        reference = library.module("core.cumsum.cumsum_torch").cumsum_torch_ref
        generator = np.random.default_rng(0)
        x = library.uniform(generator, shape, library.DTYPES[dtype])
        result = _run(kernel, {"x": x}, 1)
        expected = library.to_numpy(reference(library.to_torch(x.astype(np.float32)))["output_0"])
        library.assert_agrees(result.outputs[0], expected, dtype)


class RopeTest(parameterized.TestCase):
    @parameterized.parameters(
        *((dtype, lnc, layout) for dtype, lnc in _EACH for layout in (True, False))
    )
    def test_agrees(self, dtype, lnc, contiguous_layout):
        module = library.module("core.embeddings.rope")
        reference = library.module("core.embeddings.rope_torch").rope_torch_ref
        generator = np.random.default_rng(1)
        kind = library.DTYPES[dtype]
        arguments = {
            "x_in": library.uniform(generator, (128, 2, 3, 8), kind),
            "cos": library.uniform(generator, (64, 2, 8), kind),
            "sin": library.uniform(generator, (64, 2, 8), kind),
        }
        options = {"lnc_shard": lnc == 2, "contiguous_layout": contiguous_layout}
        kernel = getattr(module, "rope", None) or module.RoPE
        result = _run(kernel, {**arguments, **options}, lnc)
        expected = reference(**library.to_torch(arguments), **options)["x_out"]
        library.assert_agrees(result.outputs[0], library.to_numpy(expected), dtype)


class RmsNormTest(parameterized.TestCase):
    @parameterized.parameters(*((dtype, lnc, b) for dtype, lnc in _EACH for b in (2, 24)))
    def test_agrees(self, dtype, lnc, batch):
        kernel = library.module("core.subkernels.rmsnorm_tkg").rmsnorm_tkg
        references = library.module("core.subkernels.rmsnorm_torch")
        reference = (
            references.rmsnorm_tkg_torch_ref if lnc == 2 else references.rmsnorm_tkg_torch_ref_lnc1
        )
        generator = np.random.default_rng(2)
        kind = library.DTYPES[dtype]
        hidden = 1024
        x = library.uniform(generator, (batch, 1, hidden), kind)
        gamma = library.uniform(generator, (1, hidden), kind, 0.5, 1.5)

        def program(x, gamma):
            tile = nl.ndarray((128, batch, hidden // 128), dtype=x.dtype, buffer=nl.sbuf)
            kernel(x, gamma, tile)
            out = nl.ndarray(tile.shape, dtype=x.dtype, buffer=nl.shared_hbm)
            if nl.program_id(0) == 0:
                nisa.dma_copy(dst=out, src=tile)
            return out

        result = _run(program, {"x": x, "gamma": gamma}, lnc)
        expected = reference(*library.to_torch([x, gamma]), None)["out"]
        library.assert_agrees(result.outputs[0], library.to_numpy(expected), dtype)


class OutputProjectionTest(parameterized.TestCase):
    @parameterized.parameters(*_EACH)
    def test_agrees(self, dtype, lnc):
        package = "core.output_projection.output_projection_tkg"
        kernel = library.module(package).output_projection_tkg
        reference = library.module(f"{package}_torch").output_projection_tkg_torch_ref
        generator = np.random.default_rng(3)
        kind = library.DTYPES[dtype]
        heads, hidden = 4, 1024
        arguments = {
            "attention": library.uniform(generator, (128, 4, heads, 1), kind),
            "weight": library.normal(generator, (heads * 128, hidden), kind, 0.05),
            "bias": library.uniform(generator, (1, hidden), kind),
        }
        result = _run(kernel, arguments, lnc)
        expected = reference(**library.to_torch(arguments))["out"]
        library.assert_agrees(result.outputs[0], library.to_numpy(expected), dtype)


class QkvTest(parameterized.TestCase):
    @parameterized.parameters(*_EACH)
    def test_agrees(self, dtype, lnc):
        kernel = library.module("core.qkv.qkv_tkg").qkv_tkg
        reference = library.module("core.qkv.qkv_tkg_torch").qkv_tkg_torch_ref
        types = library.module("core.utils.common_types")
        generator = np.random.default_rng(4)
        kind = library.DTYPES[dtype]
        hidden, columns = 1024, (4 + 2) * 128
        arguments = {
            "hidden": library.uniform(generator, (4, 1, hidden), kind),
            "qkv_w": library.normal(generator, (hidden, columns), kind, hidden**-0.5),
            "norm_w": library.uniform(generator, (1, hidden), kind, 0.5, 1.5),
        }
        options = {
            "d_head": 128,
            "num_kv_heads": 1,
            "num_q_heads": 4,
            "norm_type": types.NormType.RMS_NORM,
            "output_layout": types.QKVOutputLayout.BSD,
        }
        result = _run(kernel, {**arguments, **options}, lnc)
        output = result.outputs[0]
        output = output[0] if isinstance(output, (list, tuple)) else output
        expected = reference(**library.to_torch(arguments), **options)["out"]
        library.assert_agrees(output, library.to_numpy(expected), dtype)


class RouterTopKTest(parameterized.TestCase):
    @parameterized.product(dtype=list(library.DTYPES), pre_norm=[True, False])
    def test_agrees(self, dtype, pre_norm):
        kernel = library.module("core.router_topk.router_topk").router_topk
        reference = library.module("core.router_topk.router_topk_torch").router_topk_torch_ref
        activation = library.module("core.utils.common_types").RouterActFnType.SOFTMAX
        generator = np.random.default_rng(5)
        kind = library.DTYPES[dtype]
        tokens, hidden, experts, k = 16, 512, 64, 4
        arguments = {
            "x": library.uniform(generator, (hidden, tokens), kind),
            "w": library.normal(generator, (hidden, experts), kind, hidden**-0.5),
            "w_bias": library.uniform(generator, (1, experts), kind),
            "router_logits": np.zeros((tokens, experts), kind),
            "expert_affinities": np.zeros((tokens, experts), kind),
            "expert_index": np.zeros((tokens, k), np.uint32),
        }
        options = {
            "act_fn": activation,
            "k": k,
            "x_hbm_layout": 0,
            "x_sb_layout": 0,
            "router_pre_norm": pre_norm,
        }
        # The kernel calls core_barrier, so it needs both cores.
        result = _run(kernel, {**arguments, **options}, 2)
        wide = {n: a.astype(np.float32) for n, a in arguments.items()}
        expected = reference(**library.to_torch(wide), **options)
        for name in ("router_logits", "expert_affinities"):
            library.assert_agrees(result.mutated[0][name], library.to_numpy(expected[name]), dtype)
        if dtype == "float32":
            np.testing.assert_array_equal(
                result.mutated[0]["expert_index"], expected["expert_index"].numpy()
            )
