"""`import nki` and its undoing, in interpreters of their own."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import parameterized

from tests import fake_nki

ROOT = pathlib.Path(__file__).parents[2]

_PROGRAM = """
from jax_tkg import simulator
assert simulator.install() and simulator.install()
import nki, nki.language as nl, nki.isa as nisa, nki.collectives as nccl
from nki.isa.constants import dge_mode, oob_mode
from nki.language import NKIObject
import numpy as np

@nki.jit
def kernel(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=x, dge_mode=dge_mode.none)
    return out

assert (nki.simulate(kernel)(np.ones((2, 2), np.float32)) == 1).all()
assert nisa.nc_version.gen3 < nisa.nc_version.gen4
print("simulated")
"""

_REAL = """
from jax_tkg import simulator
assert not simulator.install()
import nki
print(nki.origin)
"""


_MODULES = """
import importlib, importlib.util, sys
from jax_tkg import simulator
assert importlib.util.find_spec("nki") is None and importlib.util.find_spec("neuronxcc") is None
loaded = set(sys.modules)
assert simulator.install()
added = sorted(set(sys.modules) - loaded)
for name in added:
    module, spec = sys.modules[name], importlib.util.find_spec(name)
    assert importlib.import_module(name) is module
    assert module.__name__ == spec.name == name and module.__spec__ is spec
    assert module.__loader__ is spec.loader and spec.origin == "jax_tkg.simulator", spec
    assert (module.__package__ == name) == hasattr(module, "__path__")
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    children = {other.rpartition(".")[2] for other in added if other.rpartition(".")[0] == name}
    assert set(vars(module)) - set(vars(again)) <= children
    assert module.__doc__
print(*added)
"""

_NEURONXCC = """
import importlib.util, sys
from jax_tkg import simulator
simulator.install()
import neuronxcc.nki.typing as nt
from neuronxcc.nki.typing import mutable_tensor, tensor
assert nt.tensor is tensor
import neuronxcc
assert neuronxcc.__simulated__ and neuronxcc.nki.__simulated__
assert "not installed" in neuronxcc.__doc__
for lookup in (lambda: neuronxcc.__version__, lambda: neuronxcc.nki.language):
    try:
        lookup()
        print("found")
    except AttributeError as error:
        print(error)
try:
    import neuronxcc.nki.language
except ModuleNotFoundError as error:
    print(error)
"""

_UNINSTALL = """
import importlib.util, sys
import jax_tkg.simulator as simulator
before = dict(sys.modules)
assert not simulator.uninstall()
for round in range(2):
    assert simulator.install()
    import nki, nki.isa, neuronxcc.nki.typing
    assert simulator.uninstall() and not simulator.uninstall()
    assert sys.modules == before, set(sys.modules) ^ set(before)
    for name in ("nki", "neuronxcc"):
        assert importlib.util.find_spec(name) is None
        try:
            importlib.import_module(name)
            print("imported", name)
        except ModuleNotFoundError as error:
            print(error)
import jax_tkg.installed_nki
print(jax_tkg.installed_nki.nki_problem())
"""

_REPLACED = """
import sys
import nki.part
placeholder, part = sys.modules["nki"], sys.modules["nki.part"]
from jax_tkg import simulator
assert simulator.install()
import nki
assert nki.__simulated__ and "nki.part" not in sys.modules
assert simulator.uninstall()
import nki
assert nki is placeholder and sys.modules["nki.part"] is part
print(nki.origin)
"""


def _python(program, path):
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


class InstallTest(parameterized.TestCase):
    def test_the_simulator_fills_the_name(self):
        self.assertEqual(_python(_PROGRAM, ROOT), "simulated")

    def test_a_real_package_wins(self):
        with tempfile.TemporaryDirectory() as folder:
            fake_nki.write_package(pathlib.Path(folder), "0.3.0", "origin = 'real'\n")
            self.assertEqual(_python(_REAL, f"{folder}:{ROOT}"), "real")

    def test_specifications_and_loaders(self):
        added = _python(_MODULES, ROOT).split()
        self.assertEqual(
            added,
            [
                "neuronxcc",
                "neuronxcc.nki",
                "neuronxcc.nki.typing",
                "nki",
                "nki.collectives",
                "nki.isa",
                "nki.isa.constants",
                "nki.language",
                "nki.typing",
            ],
        )

    def test_neuronxcc_says_what_it_is(self):
        version, language, submodule = _python(_NEURONXCC, ROOT).splitlines()
        self.assertRegex(version, "'neuronxcc' has no attribute '__version__': .*not installed")
        self.assertRegex(language, "'neuronxcc.nki' has no attribute 'language': .*typing alone")
        self.assertEqual(submodule, "No module named 'neuronxcc.nki.language'")

    def test_without_neuronxcc(self):
        program = """
import importlib.util
from jax_tkg import simulator
assert simulator.install(neuronxcc_typing=False)
import nki
print(importlib.util.find_spec("neuronxcc"))
"""
        self.assertEqual(_python(program, ROOT), "None")

    def test_an_installed_neuronxcc_is_left_alone(self):
        program = """
from jax_tkg import simulator
assert simulator.install()
import neuronxcc
print(neuronxcc.origin)
"""
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "neuronxcc.py").write_text("origin = 'real'\n")
            self.assertEqual(_python(program, f"{folder}:{ROOT}"), "real")

    def test_uninstall(self):
        once = ["No module named 'nki'", "No module named 'neuronxcc'"]
        *found, problem = _python(_UNINSTALL, ROOT).splitlines()
        self.assertEqual(found, 2 * once)
        self.assertIn("found: nothing", problem)

    def test_uninstall_restores_what_was_there(self):
        with tempfile.TemporaryDirectory() as folder:
            package = pathlib.Path(folder)
            fake_nki.write_package(package, "0.0.1", "origin = 'placeholder'\n")
            (package / "nki" / "part.py").write_text("")
            self.assertEqual(_python(_REPLACED, f"{folder}:{ROOT}"), "placeholder")

    def test_names_are_those_of_the_documented_modules(self):
        program = """
from jax_tkg import simulator
simulator.install()
import nki, types
from jax_tkg.simulator import collectives, isa, language
for found, source in ((nki.collectives, collectives), (nki.isa, isa), (nki.language, language)):
    assert found.__all__ == source.__all__
    for name in source.__all__:
        if name != "constants":
            assert getattr(found, name) is getattr(source, name)
assert nki.isa.constants.dge_mode is isa.dge_mode
print([name for name, value in vars(nki.isa).items() if isinstance(value, types.ModuleType)])
"""
        self.assertEqual(_python(program, ROOT), "['constants']")
