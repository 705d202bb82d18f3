"""AWS's transformer_tkg megakernel on the simulator."""

from unittest import mock

import numpy as np
import pytest
from absl.testing import parameterized

from jax_tkg import simulator
from jax_tkg.simulator.isa import matmul
from tests.nkilib import cases, library

library.require()


def _kernel():
    return library.module("experimental.transformer.transformer_tkg").transformer_tkg


def _run(arguments, size, lnc, ranks=1, **options):
    groups = [list(range(ranks))] if ranks > 1 else None
    per_rank = arguments if isinstance(arguments, list) else [arguments] * ranks
    return simulator.run(
        _kernel(),
        [cases.kernel_arguments(found, size.L, groups) for found in per_rank],
        lnc=lnc,
        target="trn2",
        options=simulator.Options(**options),
    )


class TransformerTest(parameterized.TestCase):
    @parameterized.product(dtype=list(library.DTYPES), lnc=[1, 2], layers=[1, 4])
    def test_one_rank_agrees(self, dtype, lnc, layers):
        size = cases.Size(L=layers)
        found = cases.arguments(size, library.DTYPES[dtype])
        result = _run(found, size, lnc)
        library.assert_agrees(result.outputs[0], cases.golden(found, layers), dtype)

    @parameterized.parameters(1, 2)
    def test_quantized_middle_layers(self, lnc):
        size = cases.Size(L=4)
        found = cases.arguments(size, library.DTYPES["bfloat16"], quantized=(1, 2))
        result = _run(found, size, lnc)
        library.assert_agrees(result.outputs[0], cases.golden(found, 4), "bfloat16")

    @parameterized.parameters(1, 2)
    def test_quantized_middle_layers_in_float32(self, lnc):
        """The machine multiplies float32 with nothing else; without that rule they agree closely.

        This is what tells a wrong scale or slice from rounding.
        """
        size = cases.Size(L=4)
        found = cases.arguments(size, library.DTYPES["float32"], quantized=(1, 2))
        with self.assertRaisesRegex(simulator.NkiValidationError, "nc_matmul.*float32"):
            _run(found, size, lnc)
        with mock.patch.object(matmul, "_WIDE", ()):
            result = _run(found, size, lnc)
        library.assert_agrees(result.outputs[0], cases.golden(found, 4), "float32")

    @parameterized.product(lnc=[1, 2], dtype=list(library.DTYPES))
    def test_equal_ranks_agree(self, lnc, dtype):
        size = cases.Size(L=2)
        found = cases.arguments(size, library.DTYPES[dtype])
        result = _run(found, size, lnc, ranks=4)
        for output in result.outputs:
            library.assert_agrees(output, cases.golden(found, 2, ranks=4), dtype)

    @parameterized.parameters(1, 2)
    def test_ranks_with_different_weights(self, lnc):
        size = cases.Size(L=2, B=3)
        shared = ("X", "RoPE_cos", "RoPE_sin", "mask_cache", "position_ids")
        shared += ("W_gamma_qkvs", "W_gamma_mlps")
        ranks = [cases.arguments(size, np.float32, seed=seed) for seed in range(4)]
        for rank in ranks[1:]:
            rank.update({name: ranks[0][name] for name in shared})
        expected = cases.float64_transformer(ranks, size)
        result = _run(ranks, size, lnc, ranks=4)
        for output in result.outputs:
            library.assert_agrees(output, expected, "float32")

    @parameterized.parameters(1, 2)
    def test_caches_take_the_new_keys_and_values(self, lnc):
        size = cases.Size()
        found = cases.arguments(size, np.float32)
        result = _run(found, size, lnc)
        new = result.mutated[0]["V_caches[0]"]
        old = found["V_caches"][0]
        changed = np.argwhere((new != old).any(axis=-1))
        expected = [[b, 0, int(found["position_ids"][b, 0])] for b in range(size.B)]
        np.testing.assert_array_equal(changed, expected)

    def test_a_wrong_epsilon_is_seen(self):
        # float32 is the test that discriminates: in bfloat16 this hides in the rounding.
        size = cases.Size()
        found = cases.arguments(size, np.float32)
        wrong = {**cases.kernel_arguments(found, 1), "eps": 1e-2}
        result = simulator.run(_kernel(), [wrong], lnc=1, target="trn2")
        error = library.relative_error(result.outputs[0], cases.golden(found, 1).reshape(2, 512))
        assert error > library.TOLERANCE["float32"]


class KnownDefectTest(parameterized.TestCase):
    """Defects of the published kernel that the simulator must find."""

    def test_unsharded_attention_races_with_the_cache_update(self):
        size = cases.Size(B=1, S_ctx=128)
        found = cases.arguments(size, np.float32)
        for _ in range(3):
            result = _run(found, size, 2, races="report")
            raced = {f.message.split("'")[1] for f in result.findings if f.kind == "race"}
            assert raced == {"K_caches[0]", "V_caches[0]"}
        with self.assertRaisesRegex(simulator.RaceError, "race on HBM tensor 'K_caches"):
            _run(found, size, 2)

    @parameterized.parameters(1, 3)
    def test_unsharded_attention_has_no_core_barrier_before_the_cache_update(self, B):
        size = cases.Size(B=B, S_ctx=128)
        found = cases.arguments(size, np.float32)
        result = _run(found, size, 2, races="ignore", core_barriers="report")
        messages = [f.message for f in result.findings if f.kind == "core_barrier"]
        for cache in ("K_caches[0]", "V_caches[0]"):
            (message,) = (m for m in messages if f"'{cache}'" in m)
            self.assertRegex(message, "reads src of dma_copy at .*attention_tkg.py")
            self.assertRegex(message, "writes dst of dma_copy at .*attention_block_tkg.py")

    def test_sharded_attention_races_if_only_dependencies_order(self):
        # The core that writes the new value into the cache does not wait for anything that the
        # other core computes from the old ones.
        size = cases.Size()
        found = cases.arguments(size, np.float32)
        self.assertEqual(_run(found, size, 2, races="report").findings, [])
        result = _run(found, size, 2, races="report", ordering="dependencies")
        raced = {f.message.split("'")[1] for f in result.findings}
        self.assertEqual(raced, {"V_caches[0]"})

    @pytest.mark.slow
    def test_float8_slicing_of_a_partial_tile(self):
        # H=3072 at LNC 2 leaves a partial PSUM tile in the down projection; with scales that
        # differ per column the wrong slice shows.
        size = cases.Size(B=64, H=3072, I=128, q=1, S_ctx=1024, L=3)
        kind = library.DTYPES["bfloat16"]
        plain = cases.arguments(size, kind)
        found = cases.arguments(size, kind, quantized=(1,))
        sound = _run(plain, size, 2)
        expected = cases.golden(plain, 3)
        error = library.relative_error(sound.outputs[0], expected.reshape(sound.outputs[0].shape))
        assert error < library.TOLERANCE["bfloat16"]
        faulty = _run(found, size, 2)
        expected = cases.golden(found, 3)
        error = library.relative_error(faulty.outputs[0], expected.reshape(faulty.outputs[0].shape))
        assert error > library.TOLERANCE["bfloat16"]
