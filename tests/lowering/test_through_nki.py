"""The path through an installed nki: lowered for platform neuron, read, and executed on CPUs.

A stand-in has the place of AWS's package (`nki_stand_in`). The programs are lowered for neuron, and
their custom calls are served by the simulator, which runs the kernel from the generated entry.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import jax_tkg
import jax_tkg.sharding
from jax_tkg.lowering import neuron
from tests import cases, parallel_cases
from tests.lowering import custom_calls, with_nki

SHAPE = cases.Shape()
FLOAT8 = ("float8_e4m3",) * 3


def _arguments(shape: cases.Shape = SHAPE) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}


def _call(shape: cases.Shape = SHAPE, **options: Any) -> Any:
    return functools.partial(jax_tkg.transformer_tkg, **cases.options(shape), **options)


def _check(got: Any, arguments: dict[str, Any], shape: cases.Shape = SHAPE) -> None:
    hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
    cases.check(got, shape, arguments, hidden, K[0], V[0], written)


class ThroughNkiTest(parameterized.TestCase):
    """Everything in here runs with nki installed."""

    def setUp(self) -> None:
        super().setUp()
        self.nki = self.enterContext(with_nki.installed())


@pytest.mark.thorough
class LoweringTest(ThroughNkiTest):
    def test_auto_chooses_the_kernel(self) -> None:
        choice = jax_tkg.explain(**_arguments(), **cases.options(SHAPE), platform="neuron")
        self.assertEqual(choice.implementation, "nki")

    @parameterized.product(stacked=(False, True), groups=(False, True), layers=(None, 1))
    @pytest.mark.extended_except("1", "2", "4", "7")
    def test_dry_run_describes_what_nki_makes(
        self, stacked: bool, groups: bool, layers: int | None
    ) -> None:
        """The same custom calls, but for what only a compiler can know."""

        def lower(function: Any, *args: Any) -> Any:
            return jax.jit(function).trace(*args).lower(lowering_platforms=("neuron",))

        def lowered(lower: Any = lower) -> Any:
            options = {"layers_per_launch": layers, **({"axis_name": "tp"} if groups else {})}
            mesh = jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:2]), ("tp",))
            arguments = _arguments(dataclasses.replace(SHAPE, k=1, S_max=20))
            arguments = cases.stack(arguments) if stacked else arguments
            step = _call(SHAPE, **options)
            if not groups:
                return lower(lambda a: step(**a), arguments)
            everywhere = jax.sharding.PartitionSpec()
            sharded = jax.shard_map(
                lambda a: step(**a).hidden,
                mesh=mesh,
                in_specs=everywhere,
                out_specs=jax.sharding.PartitionSpec("tp"),
                check_vma=False,
            )
            return lower(sharded, arguments)

        made = lowered()
        # A dry run on a machine without nki.
        with mock.patch("jax_tkg.lowering.neuron.nki_problem", return_value="not installed"):
            described = lowered(neuron.lower_for_neuron)
        self.assertLen(custom_calls.calls(made), 1 if layers is None else 2)
        for one, other in zip(custom_calls.calls(made), custom_calls.calls(described), strict=True):
            self.assertEqual(custom_calls.aliases(one), custom_calls.aliases(other))
            self.assertEqual(
                [str(operand.type) for operand in one.operands],
                [str(operand.type) for operand in other.operands],
            )
            config, expected = custom_calls.config(one), custom_calls.config(other)
            self.assertTrue(pathlib.Path(config["klir_binary"].pop("binary")).is_file())
            self.assertEqual(expected["klir_binary"].pop("binary"), "")
            # The first output's name is the compiler's choice.
            config["klir_binary"]["output_names"][0] = "hidden"
            # Where nothing names the machine, the package compiles for the newest.
            self.assertEqual(
                (config.pop("platform_target"), expected.pop("platform_target")), (4, 3)
            )
            # Transposes are counted too.
            self.assertGreaterEqual(config.pop("mac_count"), expected.pop("mac_count"))
            for name in ("replica_groups", "num_layers"):
                expected.pop(name)
            self.assertEqual(config, expected)
            self.assertEqual(custom_calls.has_collectives(one), groups)

    def test_equal_calls_are_compiled_once(self) -> None:
        program = importlib.import_module("nki.compiler.program")
        with mock.patch.object(
            program, "compile_kernel", side_effect=program.compile_kernel
        ) as compiling:
            for _ in range(2):
                # Another function each time, so that JAX lowers it again.
                call = _call()
                jax.jit(lambda a, call=call: call(**a)).trace(_arguments()).lower(
                    lowering_platforms=("neuron",)
                )
        self.assertEqual(compiling.call_count, 1)

    def test_errors_of_the_compiler_come_out(self) -> None:
        message = "NKI_COMPILER_FRONTEND: expected one of"
        with (
            mock.patch.dict("os.environ", {"NKI_COMPILER_FRONTEND": "other"}),
            self.assertRaisesRegex(ValueError, message),
        ):
            jax.jit(_call()).trace(**_arguments()).lower(lowering_platforms=("neuron",))


@pytest.mark.thorough
class ExecutionTest(ThroughNkiTest):
    @parameterized.product(stacked=(False, True), lnc=(1, 2), implementation=("auto", "nki"))
    @pytest.mark.extended_except("0", "3", "5", "6")
    def test_one_call(self, stacked: bool, lnc: int, implementation: str) -> None:
        arguments = _arguments()
        given = cases.stack(arguments) if stacked else arguments
        call = _call(lnc=lnc, implementation=implementation)
        got = with_nki.run_as_neuron(lambda a: call(**a), given)
        _check(got, arguments)

    @parameterized.named_parameters(
        ("unified", {"unified": True}),
        ("each_position", {"positions": "each"}),
        ("no_update", {"positions": "none"}),
        ("bfloat16", {"dtype": "bfloat16"}),
        ("one_kv_head", {"k": 1, "S": 1, "B": 1}),
        ("float8", {"quantized": (FLOAT8, (None,) * 3), "clamp_bound": 0.5}),
        ("float8_stacked", {"quantized": (FLOAT8, FLOAT8)}, True),
        ("float8_of_trn3", {"quantized": (("float8_e4m3fn",) * 3,) * 2}),
    )
    @pytest.mark.extended_except("no_update", "float8", "one_kv_head", "unified")
    def test_forms(self, sizes: dict[str, Any], stacked: bool = False) -> None:
        shape = dataclasses.replace(SHAPE, **sizes)
        arguments = _arguments(shape)
        given = cases.stack(arguments) if stacked else arguments
        call = _call(shape)
        _check(with_nki.run_as_neuron(lambda a: call(**a), given), arguments, shape)

    @parameterized.product(stacked=(False, True), layers=(1, 2))
    @pytest.mark.extended_except("0", "3")
    def test_launches(self, stacked: bool, layers: int) -> None:
        shape = dataclasses.replace(SHAPE, L=3)
        arguments = _arguments(shape)
        given = cases.stack(arguments) if stacked else arguments
        call = _call(shape, layers_per_launch=layers)
        _check(with_nki.run_as_neuron(lambda a: call(**a), given), arguments, shape)

    @parameterized.product(stacked=(False, True), loop=("scan", "fori_loop"))
    @pytest.mark.extended_except("1", "2")
    def test_loops(self, stacked: bool, loop: str) -> None:
        arguments = jax.tree.map(jnp.asarray, _arguments())
        given = cases.stack(arguments) if stacked else arguments

        def steps(implementation: str, arguments: dict[str, Any]) -> Any:
            def step(a: dict[str, Any]) -> dict[str, Any]:
                out = _call(implementation=implementation)(**a)
                return {**a, "X": out.hidden / 4, "K_caches": out[1], "V_caches": out[2]}

            if loop == "scan":
                return jax.lax.scan(lambda c, _: (step(c), None), arguments, None, length=3)[0]
            return jax.lax.fori_loop(0, 3, lambda _, c: step(c), arguments)

        got = with_nki.run_as_neuron(functools.partial(steps, "nki"), given)
        want = jax.jit(functools.partial(steps, "reference"))(given)
        for name in ("X", "K_caches", "V_caches"):
            for one, other in zip(
                jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)

    @parameterized.product(
        mesh=(((4,), ("tp",)), ((2, 2), ("dp", "tp")), ((2, 2), ("tp", "dp"))),
        on_chip=(False, True),
    )
    @pytest.mark.extended_except("3", "5")
    def test_meshes(self, mesh: Any, on_chip: bool) -> None:
        """Every rank has data of its own: groups that are numbered otherwise give other sums."""
        sizes, names = mesh
        devices = np.asarray(jax.devices("cpu")[:4]).reshape(sizes)
        laid_out = jax.sharding.Mesh(devices, names)
        data_axis = "dp" if "dp" in names else None
        ranks = parallel_cases.random_ranks(
            SHAPE, laid_out.shape.get("dp", 1), laid_out.shape["tp"], seed=0
        )
        specs = jax_tkg.sharding.partition_specs("tp", data_axis)
        whole = parallel_cases.join(ranks, specs, "tp", data_axis)
        call = _call(axis_name="tp", sbuf_residual_and_cc=on_chip)
        step = jax.shard_map(
            lambda a: tuple(call(**a)),
            mesh=laid_out,
            in_specs=({name: getattr(specs, name) for name in whole},),
            out_specs=(specs.hidden, specs.K_caches, specs.V_caches),
        )
        placed = with_nki.on_mesh(whole, laid_out, specs)
        got = with_nki.run_as_neuron(jax.jit(step), placed)
        parallel_cases.check(jax_tkg.TransformerTkgOutput(*got), SHAPE, ranks)

    def test_donation(self) -> None:
        """Donated caches are taken, and the results are right."""
        arguments = _arguments()
        given = jax.tree.map(jnp.asarray, arguments)
        caches = {name: given.pop(name) for name in ("K_caches", "V_caches")}
        call = _call()
        got = with_nki.run_as_neuron(lambda a, c: call(**a, **c), given, caches, donate_argnums=1)
        self.assertTrue(all(leaf.is_deleted() for leaf in jax.tree.leaves(caches)))
        _check(got, arguments)

    @parameterized.parameters("parser", "tracer")
    def test_front_ends(self, name: str) -> None:
        arguments = _arguments()
        call = _call()
        with mock.patch.dict("os.environ", {"NKI_COMPILER_FRONTEND": name}):
            _check(with_nki.run_as_neuron(lambda a: call(**a), arguments), arguments)


class StandInTest(ThroughNkiTest):
    """That the stand-in behaves as NKI does where a wrong lowering would show."""

    KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def doubled(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_compute(dst=out, srcs=[x, x], scales=[1.0, 1.0], reduce_op=nl.add)
    return out

@nki.jit
def kernel(x, cache, other):
    out = doubled(x)
    nisa.dma_copy(dst=cache, src=x)
    nisa.dma_copy(dst=other, src=x)
    return out, cache
"""

    def setUp(self) -> None:
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder) / "kernel.py"
        self.path.write_text(self.KERNEL)
        self.scope: dict[str, Any] = {"__name__": "kernel"}
        exec(compile(self.KERNEL, self.path, "exec"), self.scope)
        self.kernel = self.scope["kernel"]
        self.x = np.arange(8, dtype=np.float32).reshape(2, 4)

    def _run(self, machine: str = "2") -> Any:
        """On two cores, compiled for a machine of so many."""
        zeros = jnp.zeros((2, 4))
        with mock.patch.dict("os.environ", {"NEURON_LOGICAL_NC_CONFIG": machine}):
            return with_nki.run_as_neuron(
                lambda x: self.kernel[2](x, zeros, zeros), jnp.array(self.x)
            )

    def test_nested_kernels_are_one(self) -> None:
        out, cache = self._run()
        np.testing.assert_array_equal(out, 2 * self.x)
        np.testing.assert_array_equal(cache, self.x)

    def test_only_returned_inputs_alias(self) -> None:
        zeros = jnp.zeros((2, 4))
        lowered = (
            jax.jit(lambda x: self.kernel(x, zeros, zeros))
            .trace(jnp.array(self.x))
            .lower(lowering_platforms=("neuron",))
        )
        (only,) = custom_calls.calls(lowered)
        self.assertEqual(custom_calls.aliases(only), [(1, 1)])
        binary = custom_calls.config(only)["klir_binary"]
        self.assertEqual(binary["input_names"], ["x", "cache.must_alias_input", "other"])
        self.assertEqual(binary["output_names"][1], "cache")

    @parameterized.parameters(("parser", 3), ("tracer", 2))
    def test_the_parser_reads_the_file(self, name: str, factor: int) -> None:
        self.path.write_text(
            self.KERNEL.replace("[x, x], scales=[1.0, 1.0]", "[x, x, x], scales=[1.0] * 3")
        )
        with mock.patch.dict("os.environ", {"NKI_COMPILER_FRONTEND": name}):
            out, _ = self._run()
        np.testing.assert_array_equal(out, factor * self.x)

    def test_cores(self) -> None:
        for lnc in (0, 3, (2,), [2]):
            with self.assertRaisesRegex(ValueError, "LNC of 1 or 2"):
                self.kernel[lnc]

    @parameterized.parameters("1", "")
    def test_cores_of_another_machine(self, machine: str) -> None:
        with self.assertRaisesRegex(ValueError, "LNC of 2, but the compiler one of 1"):
            self._run(machine)

    def test_lists_of_jax_arrays(self) -> None:
        x = jnp.array(self.x)
        with self.assertRaisesRegex(TypeError, "cache: a list of JAX arrays"):
            self.kernel(x, [x], x)

    def test_standalone_lists_are_ranks(self) -> None:
        ranks = [self.x, self.x + 1]
        zeros = [np.zeros_like(self.x)] * 2
        results = self.kernel(ranks, zeros, zeros)
        for (out, cache), x in zip(results, ranks, strict=True):
            np.testing.assert_array_equal(out, 2 * x)
            np.testing.assert_array_equal(cache, x)

    def test_a_kernel_whose_file_is_gone(self) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict("os.environ", {"NKI_ARTIFACTS_DIR": folder}),
        ):
            program = importlib.import_module("nki.compiler.program")
            compiling = program.compile_kernel

            def and_remove(*args: Any) -> Any:
                made = compiling(*args)
                os.remove(made.path)
                return made

            with (
                mock.patch.object(program, "compile_kernel", and_remove),
                self.assertRaisesRegex(FileNotFoundError, "the kernel's file is gone"),
            ):
                self._run()


class OwnInterpreterTest(absltest.TestCase):
    PROGRAM = """
import functools
import importlib
import numpy as np
import jax_tkg
from jax_tkg import simulator
from tests import cases
from tests.lowering import with_nki

assert not simulator.install()
import nki
assert nki.__version__ == "0.6.0+stand.in"
shape = cases.Shape()
rng = np.random.default_rng(0)
arguments = {**cases.random_weights(shape, rng), **cases.random_inputs(shape, rng)}
call = functools.partial(jax_tkg.transformer_tkg, **cases.options(shape))
got = with_nki.run_as_neuron(lambda a: call(**a), arguments)
hidden, K, V, written = cases.expected(shape, [arguments], [arguments])
cases.check(got, shape, arguments, hidden, K[0], V[0], written)
choice = jax_tkg.explain(**arguments, **cases.options(shape), platform="neuron")
assert choice.implementation == "nki"
text = jax_tkg.dry_run(lambda a: call(**a), arguments)
assert text.count("AwsNeuronCustomNativeKernel") == 1
print("as expected")
"""

    def test_installed_from_the_start(self) -> None:
        root = pathlib.Path(__file__).parents[2]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", self.PROGRAM],
                capture_output=True,
                text=True,
                check=False,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{with_nki.FOLDER}:{root}",
                    "JAX_TKG_KERNELS": folder,
                },
            )
            self.assertEqual(done.stdout.strip(), "as expected", done.stderr)
            self.assertLen(list(pathlib.Path(folder).iterdir()), 1)


if __name__ == "__main__":
    absltest.main()
