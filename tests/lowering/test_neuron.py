"""Lowering for platform "neuron" on any machine: the custom calls, their aliases and groups."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import unittest
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
import jax_tkg.sharding
from jax_tkg.lowering import custom_call, neuron, neuron_settings
from tests import cases, parallel_cases
from tests.lowering import custom_calls

SHAPE = cases.Shape(L=3)
GOLDEN = pathlib.Path(__file__).parent / "golden"


def _arguments(shape: cases.Shape = SHAPE, stacked: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
    return cases.stack(arguments) if stacked else arguments


@pytest.mark.thorough
class CallTest(parameterized.TestCase):
    def _check(self, call: Any, layers: int, stacked: bool, groups: Any = None) -> None:
        config = custom_calls.config(call)
        names = config["klir_binary"]["input_names"]
        self.assertEqual(len(call.operands), len(names))
        expected = 2 if stacked else 2 * layers
        aliases = custom_calls.aliases(call)
        self.assertLen(aliases, expected)
        for result, operand in aliases:
            # An aliased output carries its input's name, which NKI marks.
            name = config["klir_binary"]["output_names"][result]
            self.assertEqual(names[operand], f"{name}.must_alias_input")
            self.assertRegex(name, "^[KV]_caches")
            self.assertEqual(str(call.results[result].type), str(call.operands[operand].type))
        self.assertEqual(config["replica_groups"], groups)
        self.assertEqual(config["has_collectives"], groups is not None)
        self.assertIn("api_version = 2", str(call))

    @parameterized.product(stacked=(False, True), loop=("jit", "scan", "fori_loop"))
    def test_one_call(self, stacked: bool, loop: str) -> None:
        arguments = _arguments(stacked=stacked)
        call = functools.partial(jax_tkg.transformer_tkg, **cases.options(SHAPE))

        def step(arguments: dict[str, Any]) -> dict[str, Any]:
            out = call(**arguments)
            return {**arguments, "K_caches": out.K_caches, "V_caches": out.V_caches}

        programs = {
            "jit": step,
            "scan": lambda a: jax.lax.scan(lambda c, _: (step(c), None), a, None, length=4)[0],
            "fori_loop": lambda a: jax.lax.fori_loop(0, 4, lambda _, c: step(c), a),
        }
        lowered = neuron.lower_for_neuron(programs[loop], jax.tree.map(jnp.asarray, arguments))
        (only,) = custom_calls.calls(lowered)
        self._check(only, SHAPE.L, stacked)

    @parameterized.named_parameters(
        ("tp4", (4,), ("tp",), [[0, 1, 2, 3]]),
        ("dp2_tp2", (2, 2), ("dp", "tp"), [[0, 1], [2, 3]]),
        ("tp2_dp2", (2, 2), ("tp", "dp"), [[0, 2], [1, 3]]),
    )
    def test_groups_of_a_mesh(self, sizes: Any, names: Any, groups: Any) -> None:
        devices = np.asarray(jax.devices("cpu")[:4]).reshape(sizes)
        mesh = jax.sharding.Mesh(devices, names)
        data_axis = "dp" if "dp" in names else None
        ranks = parallel_cases.random_ranks(
            SHAPE, mesh.shape.get("dp", 1), mesh.shape["tp"], seed=0
        )
        specs = jax_tkg.sharding.partition_specs("tp", data_axis)
        whole = parallel_cases.join(ranks, specs, "tp", data_axis)
        step = jax.shard_map(
            lambda a: tuple(jax_tkg.transformer_tkg(**a, **cases.options(SHAPE), axis_name="tp")),
            mesh=mesh,
            in_specs=({name: getattr(specs, name) for name in whole},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
        (only,) = custom_calls.calls(neuron.lower_for_neuron(step, whole))
        self._check(only, SHAPE.L, False, groups)

    def test_options_of_a_layer(self) -> None:
        """Layers without an option have no input for it."""
        shape = cases.SHAPES["every_option"]
        lowered = neuron.lower_for_neuron(
            lambda a: jax_tkg.transformer_tkg(**a, **cases.options(shape)), _arguments(shape)
        )
        (only,) = custom_calls.calls(lowered)
        self._check(only, shape.L, False)
        inputs = custom_calls.config(only)["klir_binary"]["input_names"]
        found = [name for name in inputs if name.rpartition("_")[0] in cases.LAYER_OPTIONS]
        self.assertEqual(found, [f"{name}_1" for name in cases.LAYER_OPTIONS])

    def test_explicit_groups(self) -> None:
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:4]), ("ranks",))
        everywhere = jax.sharding.PartitionSpec()
        arguments = _arguments()
        groups = [[0, 3], [1, 2]]
        step = jax.shard_map(
            lambda x: (
                jax_tkg.transformer_tkg(
                    **{**arguments, "X": x}, **cases.options(SHAPE), replica_groups=groups
                ).hidden
            ),
            mesh=mesh,
            in_specs=everywhere,
            out_specs=jax.sharding.PartitionSpec("ranks"),
            check_vma=False,
        )
        (only,) = custom_calls.calls(neuron.lower_for_neuron(step, arguments["X"]))
        self._check(only, SHAPE.L, False, groups)

    @parameterized.product(stacked=(False, True), size=(1, 2, 3, 4))
    @pytest.mark.extended_except("0", "1", "3", "6")
    def test_layers_per_launch(self, stacked: bool, size: int) -> None:
        arguments = _arguments(stacked=stacked)
        lowered = neuron.lower_for_neuron(
            lambda a: jax_tkg.transformer_tkg(**a, **cases.options(SHAPE), layers_per_launch=size),
            arguments,
        )
        counts = [custom_calls.config(call)["num_layers"] for call in custom_calls.calls(lowered)]
        self.assertEqual(sum(counts), SHAPE.L)
        self.assertLen(counts, -(-SHAPE.L // size))
        self.assertLessEqual(max(counts), size)

    @pytest.mark.extended
    def test_kinds(self) -> None:
        """Each launch has the stacks and masks of its own kinds, and updates those alone."""
        shape = dataclasses.replace(cases.KINDS, layer_kinds=(0, 0, 1, 1, 1))
        rng = np.random.default_rng(0)
        arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
        arguments = jax.tree.map(jnp.asarray, cases.stack(arguments, shape.layer_kinds))
        lowered = neuron.lower_for_neuron(
            lambda a: jax_tkg.transformer_tkg(**a, **cases.options(shape), layers_per_launch=2),
            arguments,
        )
        caches = []
        for call in custom_calls.calls(lowered):
            names = custom_calls.config(call)["klir_binary"]["input_names"]
            caches.append([name for name in names if "caches" in name])
            self.assertLen(custom_calls.aliases(call), len(caches[-1]))
            kinds = {name[-1] for name in names if name.startswith("RoPE_cos")}
            self.assertEqual(kinds, {name.split("_")[2][0] for name in caches[-1]})
        of_kinds = [
            [f"{name}_{kind}.must_alias_input" for name in ("K_caches", "V_caches") for kind in own]
            for own in ((0,), (1,), (1,))
        ]
        self.assertEqual(caches, of_kinds)

    @parameterized.named_parameters(
        ("trn2", "trn2", 1, 3), ("trn3", "gen4", 2, 4), ("unsaid", "", 2, 3)
    )
    def test_config(self, target: str, cores: int, nc_version: int) -> None:
        """Field by field as NKI's `NirResult.build_config` writes it."""
        shape = cases.Shape(L=2, B=1, S=2, q=2, k=1, d=32, H=128, I=256, S_ctx=8, S_max=16)
        environment = {neuron_settings.TARGET_VARIABLE: target}
        with mock.patch.dict("os.environ", environment):
            lowered = neuron.lower_for_neuron(
                lambda a: jax_tkg.transformer_tkg(**a, **cases.options(shape), lnc=cores),
                _arguments(shape),
            )
        (only,) = custom_calls.calls(lowered)
        config = custom_calls.config(only)
        binary = config.pop("klir_binary")
        # By hand, per layer: QKV, output, MLP, and two products with eight slots and two new keys.
        multiplications = 2 * (128 * 4 * 32 + 2 * 32 * 128 + 3 * 128 * 256 + 2 * 2 * 32 * 10)
        self.assertEqual(
            config,
            {
                "func_name": "transformer_tkg_entry",
                "platform_target": nc_version,
                "kernel_format": "bir",
                "kernel_version": 1,
                "grid": cores,
                "has_collectives": False,
                "mac_count": 2 * multiplications,
                "replica_groups": None,
                "num_layers": 2,
            },
        )
        self.assertEqual(
            set(binary),
            {"binary", "input_names", "output_names", "version_identifier", "aliases"},
        )
        self.assertEqual((binary["binary"], binary["version_identifier"]), ("", ""))
        swapped = [[operand, result] for result, operand in custom_calls.aliases(only)]
        self.assertEqual(sorted(binary["aliases"]), sorted(swapped))
        self.assertLen(binary["aliases"], 4)

    def test_no_update_has_no_offsets(self) -> None:
        shape = dataclasses.replace(SHAPE, positions="none")
        lowered = neuron.lower_for_neuron(
            lambda a: jax_tkg.transformer_tkg(**a, **cases.options(shape)), _arguments(shape)
        )
        (only,) = custom_calls.calls(lowered)
        names = custom_calls.config(only)["klir_binary"]["input_names"]
        self.assertEmpty([name for name in names if name.endswith("offsets")])

    def test_text(self) -> None:
        text = jax_tkg.dry_run(
            lambda a: jax_tkg.transformer_tkg(**a, **cases.options(SHAPE)), _arguments()
        )
        self.assertEqual(text.count(f"@{custom_call.TARGET}("), 1)

    def test_donation(self) -> None:
        arguments = _arguments()
        caches = {name: arguments.pop(name) for name in ("K_caches", "V_caches")}
        step = jax.jit(
            lambda a, c: jax_tkg.transformer_tkg(**a, **c, **cases.options(SHAPE)),
            donate_argnums=1,
        )
        text = jax_tkg.dry_run(step, arguments, caches)
        self.assertEqual(text.count("tf.aliasing_output"), 2 * SHAPE.L)


class GoldenTest(absltest.TestCase):
    """As reviewed; UPDATE_GOLDEN=1 writes it anew."""

    def _check(self, lowered: Any, name: str) -> None:
        (call,) = custom_calls.calls(lowered)
        config = json.dumps(custom_calls.config(call), indent=2, sort_keys=True)
        text = (
            f"{lowered.as_text()}\n// backend_config:\n// " + config.replace("\n", "\n// ") + "\n"
        )
        if os.environ.get("UPDATE_GOLDEN"):
            (GOLDEN / name).write_text(text)
        self.assertEqual(text, (GOLDEN / name).read_text())

    @unittest.skipUnless(jax.__version__ == "0.10.2", "the text differs from release to release")
    def test_head(self) -> None:
        """A layer and a head, whose candidates are results of the same call."""
        shape = cases.Shape(B=1, S=1, q=1, k=1, d=64, L=1, S_ctx=8, S_max=8, unified=True)
        given = {
            **_arguments(shape),
            "W_gamma_final": np.ones((1, shape.H), np.float32),
            "W_head": np.zeros((shape.H, 300), np.float32),
        }
        given["position_ids"] = given["position_ids"].astype(np.int32)
        run = functools.partial(
            jax_tkg.transformer_tkg,
            **cases.options(shape),
            candidates_per_token=3,
            logit_scale=0.5,
            logit_softcap=30.0,
        )
        self._check(neuron.lower_for_neuron(lambda a: tuple(run(**a)), given), "neuron_head.mlir")

    @unittest.skipUnless(jax.__version__ == "0.10.2", "the text differs from release to release")
    def test_text(self) -> None:
        """Two layers over four ranks."""
        shape = cases.Shape(B=1, S=1, q=1, k=1, d=64, L=2, S_ctx=8, S_max=8, unified=True)
        mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:4]), ("tp",))
        specs = jax_tkg.sharding.partition_specs("tp")
        whole = parallel_cases.join(parallel_cases.random_ranks(shape, 1, 4, 0), specs, "tp", None)
        whole["position_ids"] = whole["position_ids"].astype(np.int32)
        step = jax.shard_map(
            lambda a: tuple(jax_tkg.transformer_tkg(**a, **cases.options(shape), axis_name="tp")),
            mesh=mesh,
            in_specs=({name: getattr(specs, name) for name in whole},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
        self._check(neuron.lower_for_neuron(step, whole), "neuron_four_ranks.mlir")


class ChoiceTest(parameterized.TestCase):
    def test_cpu(self) -> None:
        choice = jax_tkg.explain(**_arguments(), **cases.options(SHAPE))
        self.assertEqual(choice.implementation, "cpu")
        self.assertIn("cpu", choice.reason)

    def test_neuron_without_nki(self) -> None:
        choice = jax_tkg.explain(**_arguments(), **cases.options(SHAPE), platform="neuron")
        self.assertEqual(choice.implementation, "reference")
        self.assertIn("nki package is not installed", choice.reason)

    def test_neuron_with_nki(self) -> None:
        with mock.patch("jax_tkg.lowering.neuron.nki_problem", return_value=None):
            choice = jax_tkg.explain(**_arguments(), **cases.options(SHAPE), platform="neuron")
        self.assertEqual(choice.implementation, "nki")

    def test_neuron_beyond_the_limits(self) -> None:
        shape = cases.Shape(B=33, S=8, q=1, k=1, L=1)
        with mock.patch("jax_tkg.lowering.neuron.nki_problem", return_value=None):
            choice = jax_tkg.explain(**_arguments(shape), **cases.options(shape), platform="neuron")
        self.assertEqual(choice.implementation, "reference")
        self.assertIn("B * S = 33 * 8 = 264", choice.reason)

    def test_within_the_limits(self) -> None:
        for batch, within in ((32, True), (33, False)):
            shape = cases.Shape(B=batch, S=8, q=1, k=1, L=1)
            for kernel in ("nki", "simulate"):
                got = jax_tkg.is_within_limits(kernel, **_arguments(shape), **cases.options(shape))
                self.assertEqual(got, within, f"{kernel}, {batch} sequences")
        with self.assertRaisesRegex(ValueError, "name: expected one of nki, .*, got 'cpu'"):
            jax_tkg.is_within_limits("cpu", **_arguments(), **cases.options(SHAPE))

    @parameterized.named_parameters(
        ("nki_on_cpu", "nki", "cpu", "'nki' on platform neuron only"),
        ("nki_not_installed", "nki", "neuron", "AWS's nki package is not installed"),
        ("simulate_on_neuron", "simulate", "neuron", "'simulate' on platform cpu only"),
    )
    def test_impossible(self, implementation: str, platform: str, message: str) -> None:
        with self.assertRaisesRegex(ValueError, f"implementation: .*{message}"):
            jax_tkg.explain(
                **_arguments(),
                **cases.options(SHAPE),
                implementation=implementation,
                platform=platform,
            )

    def test_limits_of_the_kernel(self) -> None:
        shape = cases.Shape(B=33, S=8, q=1, k=1, L=1)
        with self.assertRaisesRegex(ValueError, r"X: .*B \* S = 33 \* 8 = 264"):
            jax_tkg.transformer_tkg(
                **_arguments(shape), **cases.options(shape), implementation="simulate"
            )

    def test_both_platforms_at_once(self) -> None:
        arguments = _arguments()
        traced = jax.jit(lambda a: jax_tkg.transformer_tkg(**a, **cases.options(SHAPE))).trace(
            arguments
        )
        text = str(traced.lower(lowering_platforms=("cpu", "neuron")).compiler_ir("stablehlo"))
        self.assertNotIn(custom_call.TARGET, text)


if __name__ == "__main__":
    absltest.main()
