"""`import nki`, in interpreters of their own."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import parameterized

from tests import fake_nki

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
        root = pathlib.Path(__file__).parents[2]
        self.assertEqual(_python(_PROGRAM, root), "simulated")

    def test_a_real_package_wins(self):
        root = pathlib.Path(__file__).parents[2]
        with tempfile.TemporaryDirectory() as folder:
            fake_nki.write_package(pathlib.Path(folder), "0.3.0", "origin = 'real'\n")
            self.assertEqual(_python(_REAL, f"{folder}:{root}"), "real")
