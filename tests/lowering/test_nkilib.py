"""AWS's kernel behind the call: where it is looked for, its limits, and its lowering."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import pathlib
import tempfile
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg.call.arguments import Parameters
from jax_tkg.lowering import kernel_entry, neuron, nkilib_kernel, nkilib_release
from jax_tkg.lowering.kernel_interface import Launch
from jax_tkg.lowering.nkilib_release import NEWEST, Release
from tests import cases
from tests.kernels import launch
from tests.lowering import custom_calls

SHAPE = cases.Shape(
    B=2, S=1, q=4, k=1, d=128, H=512, I=256, S_ctx=256, S_max=300, unified=True, dtype="bfloat16"
)
FLOAT8 = ("float8_e4m3",) * 3
OLDER = Release(joint_mask=False, selects_float8=False, token_slots=False)


def _arguments(shape: cases.Shape) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


def _explain(shape: cases.Shape, **changes: Any) -> jax_tkg.Choice:
    given = {**_arguments(shape), **cases.options(shape), "lnc": 1, **changes}
    return jax_tkg.explain(**given, platform="cpu", implementation="nkilib")


class LimitTest(parameterized.TestCase):
    """Every limit is refused with its argument, what was expected and what came."""

    def setUp(self) -> None:
        super().setUp()
        found = mock.patch("jax_tkg.lowering.nkilib.installed_release", return_value=OLDER)
        self.release = self.enterContext(found)

    def test_within_limits(self) -> None:
        for lnc in (1, 2):
            self.assertEqual(_explain(SHAPE, lnc=lnc).implementation, "nkilib")
        quantized = dataclasses.replace(SHAPE, quantized=(FLOAT8, (None,) * 3))
        self.assertEqual(_explain(quantized).implementation, "nkilib")

    @parameterized.named_parameters(
        ("on_chip", {}, {"sbuf_residual_and_cc": True}, "sbuf_residual_and_cc: .*False.*got True"),
        ("clamp", {"clamp_bound": 0.5}, {}, "clamp_bound: expected 0 .*got 0.5"),
        ("active_mask", {"unified": False}, {}, "mask_active: .*S_max >= 512 .*S_max = 300"),
        ("each_position", {"positions": "each", "S": 2}, {}, r"position_ids: .*got \(2, 2\)"),
        ("kv_heads", {"k": 2}, {}, "K_caches: expected one KV head .*got k = 2"),
        ("head_size", {"d": 32}, {}, "V_caches: expected d of 64 or 128 .*got 32"),
        ("queries", {"B": 8, "q": 20, "L": 1}, {}, r"X: .*<= 128 .*got 8 \* 1 \* 20 = 160"),
        ("part_of_a_tile", {"H": 192}, {}, "X: expected H to be a multiple of 128 .*got 192"),
        ("part_of_i", {"I": 100}, {}, "W_gates: expected I to be a multiple of 128 .*got 100"),
        ("odd_tiles", {"H": 384, "L": 1}, {"lnc": 2}, "X: expected H / 128 divisible by lnc = 2"),
        ("several_odd", {"H": 384}, {}, "X: .*even with several layers.*got 3 and"),
        ("context", {"S_ctx": 200}, {}, "mask_cache: .*multiple of 128.*got 200"),
        ("context_of_two", {"S_ctx": 384, "S_max": 400}, {"lnc": 2}, "multiple of 256.*got 384"),
        ("race", {"B": 1, "S_ctx": 128, "H": 512}, {"lnc": 2}, "S_ctx >= 256 .*race.*S_ctx = 128"),
        (
            "some_scales",
            {"quantized": (("float8_e4m3", None, "float8_e4m3"), (None,) * 3)},
            {},
            "W_up_scales: expected scales of all three weights or of none in layer 0",
        ),
        (
            "float8_kind",
            {"quantized": ((None,) * 3, ("float8_e5m2",) * 3)},
            {},
            "W_gates: expected float8_e4m3 in layer 1 .*got float8_e5m2",
        ),
        (
            "many_quantized",
            {"quantized": (FLOAT8, FLOAT8), "B": 100, "q": 1, "H": 256},
            {},
            r"X: expected B \* S <= 96 .*got 100 \* 1 = 100",
        ),
        (
            "float32_quantized",
            {"quantized": (FLOAT8, FLOAT8), "dtype": "float32"},
            {},
            "X: expected a 16-bit dtype .*got float32",
        ),
    )
    def test_limit(self, sizes: dict[str, Any], options: dict[str, Any], message: str) -> None:
        shape = dataclasses.replace(SHAPE, **sizes)
        with self.assertRaisesRegex(ValueError, message):
            _explain(shape, **options)

    def test_what_the_newer_signature_allows(self) -> None:
        self.release.return_value = dataclasses.replace(NEWEST, token_slots=True)
        for sizes, options in (
            ({}, {"sbuf_residual_and_cc": True}),
            ({"positions": "each", "S": 2}, {}),
            ({"quantized": (("float8_e4m3fn",) * 3, (None,) * 3)}, {}),
        ):
            shape = dataclasses.replace(SHAPE, **sizes)
            self.assertEqual(_explain(shape, **options).implementation, "nkilib")

    @parameterized.named_parameters(
        ("slots", NEWEST, {"positions": "each", "S": 2}, r"position_ids: .*got \(2, 2\)"),
        (
            "both_kinds",
            NEWEST,
            {"quantized": (("float8_e4m3fn",) * 3, FLOAT8)},
            "W_gates: expected float8_e4m3fn in layer 1 .*got float8_e4m3",
        ),
        (
            "sdk_2_30_has_one_kind",
            dataclasses.replace(NEWEST, selects_float8=False),
            {"quantized": (("float8_e4m3fn",) * 3,) * 2},
            "W_gates: expected float8_e4m3 in layer 0 .*got float8_e4m3fn",
        ),
    )
    def test_limits_of_the_newer_signature(
        self, release: Release, sizes: dict[str, Any], message: str
    ) -> None:
        self.release.return_value = release
        with self.assertRaisesRegex(ValueError, message):
            _explain(dataclasses.replace(SHAPE, **sizes))

    def test_cores_of_the_machine(self) -> None:
        given = {**_arguments(SHAPE), **cases.options(SHAPE), "lnc": 1}
        with (
            mock.patch.dict("os.environ", NEURON_LOGICAL_NC_CONFIG="2"),
            mock.patch("jax_tkg.lowering.neuron.nki_problem", return_value=None),
            self.assertRaisesRegex(ValueError, "lnc: expected 2, which NEURON_LOGICAL_NC_CONFIG"),
        ):
            jax_tkg.explain(**given, platform="neuron", implementation="nkilib")

    def test_stacked(self) -> None:
        arguments = _arguments(SHAPE)
        with self.assertRaisesRegex(ValueError, "W_outs: expected a sequence .*one array"):
            _explain(SHAPE, W_outs=np.stack(arguments["W_outs"]))

    def test_call_is_refused_too(self) -> None:
        shape = dataclasses.replace(SHAPE, S_ctx=200)
        with self.assertRaisesRegex(ValueError, "mask_cache: .*got 200"):
            jax_tkg.transformer_tkg(
                **_arguments(shape), **cases.options(shape), implementation="nkilib", lnc=1
            )

    def test_other_platform(self) -> None:
        with self.assertRaisesRegex(ValueError, r"implementation: .*got platforms \('cuda',\)"):
            jax_tkg.explain(
                **_arguments(SHAPE),
                **cases.options(SHAPE),
                platform="cuda",
                implementation="nkilib",
            )

    def test_no_library(self) -> None:
        self.release.side_effect = ValueError("implementation: expected a library, got neither")
        with self.assertRaisesRegex(ValueError, "implementation: expected a library, got neither"):
            _explain(SHAPE)


class FindTest(absltest.TestCase):
    def test_nothing_there(self) -> None:
        with (
            mock.patch.dict(os.environ),
            mock.patch("importlib.util.find_spec", return_value=None),
            self.assertRaisesRegex(ValueError, "implementation: .*NKILIB.*got neither"),
        ):
            os.environ.pop(nkilib_release.CHECKOUT_VARIABLE, None)
            nkilib_release.find_module()

    def test_installed(self) -> None:
        with (
            mock.patch.dict(os.environ),
            mock.patch(
                "importlib.util.find_spec",
                return_value=mock.Mock(submodule_search_locations=["/installed/nkilib"]),
            ),
        ):
            os.environ.pop(nkilib_release.CHECKOUT_VARIABLE, None)
            self.assertEqual(
                nkilib_release.find_module(), "nkilib.experimental.transformer.transformer_tkg"
            )

    def test_not_a_checkout(self) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, {nkilib_release.CHECKOUT_VARIABLE: folder}),
            self.assertRaisesRegex(ValueError, f"implementation: .*got '{folder}'"),
        ):
            nkilib_release.find_module()

    def test_checkout(self) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, {nkilib_release.CHECKOUT_VARIABLE: folder}),
            mock.patch("sys.path", []) as path,
        ):
            (pathlib.Path(folder) / "src/nkilib_src/nkilib").mkdir(parents=True)
            self.assertTrue(nkilib_release.find_module().startswith("nkilib_src.nkilib."))
            self.assertEqual(path, [str(pathlib.Path(folder).resolve() / "src")])


SIGNATURE = "def transformer_tkg(X, {masks}, position_ids, num_layers, eps=1e-6{more}):\n    pass\n"


class ReleaseTest(parameterized.TestCase):
    """The installed function's signature, read from its file."""

    def _write(self, source: str, attention_block: str = "") -> None:
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        variables = {nkilib_release.CHECKOUT_VARIABLE: str(folder)}
        self.enterContext(mock.patch.dict(os.environ, variables))
        package = folder / "src/nkilib_src/nkilib/experimental/transformer"
        package.mkdir(parents=True)
        (package / "transformer_tkg.py").write_text(source)
        (package / "attention_block_tkg.py").write_text(attention_block)

    @parameterized.named_parameters(
        ("2.29", "mask_cache, mask_active", "", OLDER),
        ("2.30", "attention_mask", "", Release(True, False, True)),
        ("2.31", "attention_mask", ", dtype_mode=None", Release(True, True, True)),
    )
    def test_signatures(self, masks: str, more: str, expected: Release) -> None:
        self._write(SIGNATURE.format(masks=masks, more=more))
        self.assertEqual(nkilib_release.installed_release(), expected)

    def test_block_that_wants_the_first_slots(self) -> None:
        block = "kernel_assert(\n    kv_cache_update_idx.shape == (B, 1),\n    'mismatch')\n"
        self._write(SIGNATURE.format(masks="attention_mask", more=", dtype_mode=None"), block)
        self.assertEqual(nkilib_release.installed_release(), NEWEST)

    def test_signature_of_a_later_release(self) -> None:
        self._write(SIGNATURE.format(masks="attention_mask, sinks, tables", more=", extra=None"))
        with self.assertRaisesRegex(ValueError, "known signature .*needs sinks, tables too, in /"):
            nkilib_release.installed_release()

    @parameterized.parameters(
        ("def other():\n    pass\n", "expected a function transformer_tkg .*got none in /"),
    )
    def test_no_function(self, source: str, message: str) -> None:
        self._write(source)
        with self.assertRaisesRegex(ValueError, message):
            nkilib_release.installed_release()

    def test_no_file(self) -> None:
        self._write("")
        folder = pathlib.Path(os.environ[nkilib_release.CHECKOUT_VARIABLE])
        next(folder.rglob("transformer_tkg.py")).unlink()
        with self.assertRaisesRegex(ValueError, "expected the source of nkilib_src.*got no file /"):
            nkilib_release.installed_release()

    def test_dry_run_needs_no_library(self) -> None:
        with (
            mock.patch.dict(os.environ),
            mock.patch.object(importlib.util, "find_spec", return_value=None),
        ):
            os.environ.pop(nkilib_release.CHECKOUT_VARIABLE, None)
            call = functools.partial(
                jax_tkg.transformer_tkg, **cases.options(SHAPE), implementation="nkilib"
            )
            lowered = neuron.lower_for_neuron(jax.jit(call), **_arguments(SHAPE))
            (only,) = custom_calls.calls(lowered)
        self.assertIn("attention_mask", custom_calls.config(only)["klir_binary"]["input_names"])


class LoweringTest(parameterized.TestCase):
    def test_entry_returns_what_it_writes(self) -> None:
        operands, _ = launch.canonical(_arguments(SHAPE), **cases.options(SHAPE))
        published = nkilib_kernel.interface(OLDER, operands)
        tensors = published.operands(operands, False)
        one = Launch(Parameters(SHAPE.L, eps=1e-5), ((0, 1),), 0, SHAPE.L, False)
        kernel = dataclasses.replace(published, module=lambda: "published")
        source = kernel_entry.entry_source(tensors, one, kernel)
        self.assertIn("from published import transformer_tkg\n", source)
        self.assertIn("        replica_groups=[[0, 1]],\n", source)
        self.assertTrue(
            source.endswith(
                "    return (hidden, K_caches_0, K_caches_1, V_caches_0, V_caches_1,)\n"
            ),
            source,
        )

    def test_slots_outside_the_cache_are_skipped(self) -> None:
        """Whatever says so: the marker, a negative number, or one above S_max."""
        for given in ([[3], [2**32 - 1]], [[3], [-1]], [[3], [2**32 + 3]], [[3], [SHAPE.S_max]]):
            arguments = {**_arguments(SHAPE), "position_ids": np.array(given)}
            operands, _ = launch.canonical(arguments, **cases.options(SHAPE))
            for release in (OLDER, NEWEST):
                tensors = nkilib_kernel.interface(release, operands).operands(operands, False)
                np.testing.assert_array_equal(tensors["position_ids"], [[3], [2**32 - 1]])

    def test_dry_run(self) -> None:
        """One custom call with an alias for each cache, as of our own kernel."""
        call = functools.partial(
            jax_tkg.transformer_tkg, **cases.options(SHAPE), implementation="nkilib"
        )
        text = jax_tkg.dry_run(jax.jit(call), **_arguments(SHAPE))
        self.assertEqual(text.count("AwsNeuronCustomNativeKernel"), 1)
        self.assertEqual(text.count("output_operand_alias<"), 2 * SHAPE.L)


if __name__ == "__main__":
    absltest.main()
