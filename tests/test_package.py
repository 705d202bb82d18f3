"""`import jax_tkg` in interpreters of its own: what it loads, when, and what it shows."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys

import pytest
from absl.testing import absltest, parameterized

import jax_tkg

ROOT = pathlib.Path(__file__).parents[1]

# What a first call on a CPU needs, without the simulator.
CALL = """
import jax.numpy as jnp
import jax_tkg
from jax_tkg import caches, masks, rope
B, S, H, I, d, q, k, S_max = 1, 1, 128, 128, 8, 2, 1, 16
ones = lambda *shape: [jnp.ones(shape)]
positions = jnp.zeros((B,), jnp.int32)
cos, sin = jnp.ones((d // 2, B, S)), jnp.zeros((d // 2, B, S))
out = jax_tkg.transformer_tkg(
    jnp.ones((B, S, H)), ones(H, (q + 2 * k) * d), ones(q * d, H), ones(H, I), ones(H, I),
    ones(I, H), ones(1, H), ones(1, H), ones(B, k, d, S_max), ones(B, k, S_max, d), cos, sin,
    jnp.ones((S_max, B, q, S), bool), jnp.ones((S, B, q, S), bool), positions[:, None],
    num_layers=1)
assert out.hidden.shape == (B, S, H)
"""


def _python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _loaded(program: str) -> list[str]:
    """The modules that a program has loaded when it ends."""
    return _python(f"{program}\nimport sys\nprint(*sys.modules)").stdout.split()


def _of(modules: list[str], *packages: str) -> list[str]:
    return [m for m in modules if any(m == p or m.startswith(f"{p}.") for p in packages)]


@pytest.mark.thorough
class LazyImportTest(parameterized.TestCase):
    def test_the_package_alone(self) -> None:
        loaded = _loaded("import jax_tkg; dir(jax_tkg); jax_tkg.__version__")
        self.assertEqual(_of(loaded, "jax", "numpy", "jax_tkg"), ["jax_tkg"])

    def test_what_the_interpreter_says_it_imports(self) -> None:
        lines = _python("import jax_tkg", "-X", "importtime").stderr.splitlines()
        imported = [line.rpartition("|")[2].strip() for line in lines]
        self.assertEqual(_of(imported, "jax", "numpy", "jax_tkg"), ["jax_tkg"])

    def test_a_call_on_a_cpu_loads_no_simulator_and_no_nki(self) -> None:
        loaded = _of(_loaded(CALL), "jax_tkg", "nki")
        self.assertIn("jax_tkg.reference.transformer", loaded)
        self.assertEqual(_of(loaded, "jax_tkg.simulator", "nki"), [])

    @parameterized.parameters("simulator", "hardware", "installed_nki")
    def test_parts_that_need_no_jax(self, name: str) -> None:
        loaded = _loaded(f"import jax_tkg.{name}")
        self.assertEqual(_of(loaded, "jax", "jaxlib"), [])
        self.assertIn(f"jax_tkg.{name}", loaded)

    def test_the_simulator_runs_without_jax(self) -> None:
        program = """
import sys
sys.modules["jax"] = sys.modules["jaxlib"] = None
import jax_tkg, numpy as np
assert jax_tkg.simulator.install()
import nki, nki.language as nl, nki.isa as nisa
@nki.jit
def double(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    tile = nl.load(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=2.0)
    nisa.dma_copy(dst=out, src=tile)
    return out
print(double(np.ones((2, 2), np.float32)).sum())
"""
        self.assertEqual(_python(program).stdout.strip(), "8.0")


@pytest.mark.thorough
class PublicNamesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("forwards", jax_tkg.__all__),
        ("backwards", jax_tkg.__all__[::-1]),
    )
    @pytest.mark.extended_except("forwards")
    def test_names(self, names: list[str]) -> None:
        """Each is the same object from its first use on, also after its module is imported."""
        program = f"""
import importlib
import jax_tkg
names = {names}
first = [getattr(jax_tkg, name) for name in names]
import jax_tkg.api, jax_tkg.lowering.neuron
for name, found in zip(names, first):
    scope = {{}}
    exec(f"from jax_tkg import {{name}}", scope)
    assert found is scope[name] is getattr(jax_tkg, name), name
    print(type(found).__name__)
"""
        functions = ("dry_run", "explain", "is_within_limits", "transformer_tkg")
        kinds = ["function" if name in functions else "module" for name in names]
        for name in ("TransformerTkgCandidates", "TransformerTkgOutput"):
            kinds[names.index(name)] = "type"
        self.assertEqual(_python(program).stdout.split(), kinds)

    def test_names_are_listed(self) -> None:
        self.assertContainsSubset(jax_tkg.__all__, dir(jax_tkg))
        self.assertIn("__version__", dir(jax_tkg))

    def test_type_checkers_see_the_same_names(self) -> None:
        tree = ast.parse(pathlib.Path(jax_tkg.__file__).read_text())
        (block,) = (
            node
            for node in tree.body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        imported = [
            alias.name
            for node in block.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        self.assertCountEqual(imported, jax_tkg.__all__)

    def test_an_unknown_name(self) -> None:
        with self.assertRaisesRegex(AttributeError, "'jax_tkg' has no attribute 'transformer'"):
            _ = jax_tkg.transformer  # type: ignore[attr-defined]

    def test_the_public_functions_module(self) -> None:
        program = "import jax_tkg.api as m; print(type(m).__name__, m.transformer_tkg.__name__)"
        self.assertEqual(_python(program).stdout.strip(), "module transformer_tkg")

    @pytest.mark.extended
    def test_help(self) -> None:
        text = _python("import jax_tkg; help(jax_tkg)").stdout
        self.assertRegex(text, r"transformer_tkg\(\s*X")
        self.assertRegex(text, r"explain\(\s*\*args")


if __name__ == "__main__":
    absltest.main()
