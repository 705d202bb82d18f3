"""AWS's attention kernels for token generation on the simulator."""

import inspect

import numpy as np
from absl.testing import parameterized

from jax_tkg import simulator
from tests.nkilib import cases, library

library.require()

import nki.language as nl  # noqa: E402

_EACH = [(dtype, lnc) for dtype in library.DTYPES for lnc in (1, 2)]


class AttentionTest(parameterized.TestCase):
    @parameterized.parameters(
        *(
            (dtype, lnc, prior, transposed)
            for dtype, lnc in _EACH
            for prior, transposed in ((256, False), (512, True))
            # The kernel transposes the cache by DMA, which takes 2-byte types here.
            if not (transposed and dtype == "float32")
        )
    )
    def test_agrees(self, dtype, lnc, s_prior, tp_k_prior):
        kernel = library.module("core.attention.attention_tkg").attention_tkg
        reference = library.module("core.attention.attention_tkg_torch").attention_tkg_torch_ref
        config = library.module("core.attention.attention_tkg_utils").AttnTKGConfig
        allocator = library.module("core.utils.allocator")
        g = np.random.default_rng(0)
        kind = library.DTYPES[dtype]
        batch, heads, d, active = 4, 2, 128, 1
        keys = (batch, 1, s_prior, d) if tp_k_prior else (batch, 1, d, s_prior)
        mask = np.ones((s_prior, batch, heads, active), np.uint8)
        mask[s_prior // 2 : s_prior - 4] = 0
        arguments = {
            "q": library.uniform(g, (batch, heads, active, d), kind),
            "k_active": library.uniform(g, (batch, 1, active, d), kind),
            "v_active": library.uniform(g, (batch, 1, active, d), kind),
            "k_prior": library.uniform(g, keys, kind),
            "v_prior": library.uniform(g, (batch, 1, s_prior, d), kind),
            "mask": mask,
            "inv_freqs": (10000.0 ** -(np.arange(d // 2) / (d // 2))).astype(np.float32)[:, None],
            "rope_pos_ids": np.array([[p] for p in (0, 7, 130, 200)], np.float32),
        }
        cfg = config(
            bs=batch,
            q_head=heads,
            s_active=active,
            curr_sprior=s_prior,
            full_sprior=s_prior,
            d_head=d,
            tp_k_prior=tp_k_prior,
            strided_mm1=True,
            fuse_rope=True,
        )

        def program(**tensors):
            out = nl.ndarray(
                (batch, heads, d, active), dtype=tensors["q"].dtype, buffer=nl.shared_hbm
            )
            k_out = nl.ndarray((batch, 1, d, active), dtype=out.dtype, buffer=nl.shared_hbm)
            sbm = allocator.BufferManager(0, 200 * 1024, allocator.Logger("attention"))
            sbm.open_scope()
            kernel(**tensors, out=out, k_out=k_out, cfg=cfg, sbm=sbm)
            sbm.close_scope()
            return out, k_out

        # The kernel reduces the angles of 128 partitions, of which half are written only later.
        options = simulator.Options(uninitialized="report")
        result = simulator.run(program, [arguments], lnc=lnc, target="trn2", options=options)
        for finding in result.findings:
            self.assertRegex(finding.message, "tensor '(eb4sin|emb4cos)_rope'")
        import torch

        out = torch.zeros((batch, heads, d, active))
        k_out = torch.zeros((batch, 1, d, active))
        reference[lnc](**library.to_torch(arguments), out=out, k_out=k_out, cfg=cfg, sbm=None)
        library.assert_agrees(result.outputs[0][0], out.numpy(), dtype)
        library.assert_agrees(result.outputs[0][1], k_out.numpy(), dtype)


class AttentionBlockTest(parameterized.TestCase):
    @parameterized.parameters(*_EACH)
    def test_agrees(self, dtype, lnc):
        block = library.module("experimental.transformer.attention_block_tkg")
        references = library.module("experimental.transformer.attention_block_tkg_torch")
        none = library.module("core.utils.common_types").QuantizationType.NONE
        size = cases.Size()
        found = cases.arguments(size, library.DTYPES[dtype])
        tensors = {
            "X": found["X"],
            "rmsnorm_X_gamma": found["W_gamma_qkvs"][0],
            "W_qkv": found["W_qkvs"][0],
            "cos": found["RoPE_cos"],
            "sin": found["RoPE_sin"],
            "K_cache": found["K_caches"][0],
            "V_cache": found["V_caches"][0],
            "attention_mask": found["mask_cache"],
            "kv_cache_update_idx": found["position_ids"],
            "W_out": found["W_outs"][0],
        }
        options = {
            "X_hidden_dim_actual": size.H,
            "rmsnorm_X_enabled": True,
            "rmsnorm_X_eps": 1e-6,
            "rope_contiguous_layout": True,
            "K_cache_transposed": True,
            "update_cache": True,
            "quantization_type_qkv": none,
            "quantization_type_out": none,
            "transposed_out": False,
            "out_in_sb": False,
            "skip_attention": False,
        }
        given = {**tensors, **options}
        result = simulator.run(
            block.attention_block_tkg,
            [_completed(block.attention_block_tkg.function, given)],
            lnc=lnc,
            target="trn2",
        )
        reference = references.AttentionBlockTkgTorchRef(lnc)
        wanted = _completed(reference.forward, library.to_torch(given))
        expected = reference(**wanted)
        output = result.outputs[0]
        output = output[0] if isinstance(output, (list, tuple)) else output
        library.assert_agrees(output, library.to_numpy(expected["X_out"]), dtype)
        for name in ("K_cache", "V_cache"):
            updated = library.to_numpy(expected[f"{name}_updated"])
            library.assert_agrees(result.mutated[0][name], updated, dtype)


def _completed(function, given):
    """The arguments a function takes: those given, and None or False for others it requires."""
    completed = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in given:
            completed[name] = given[name]
        elif parameter.default is inspect.Parameter.empty:
            completed[name] = False if name.endswith("_enabled") else None
    return completed
