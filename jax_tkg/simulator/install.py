"""Making ``import nki`` find the simulator where the real package is absent."""

import importlib.util
import sys
import types

from jax_tkg.installed_nki import find_nki
from jax_tkg.simulator import collectives, isa, language, launch
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.memory.objects import NKIObject
from jax_tkg.simulator.memory.tensor import NkiTensor


def install() -> bool:
    """Registers the simulator as ``nki`` unless AWS's package is installed, in any version.

    Returns:
      Whether ``import nki`` now gives the simulator.
    """
    if find_nki() is not None:
        return False
    if not getattr(sys.modules.get("nki"), "__simulated__", False):
        package = _package()
        sys.modules["nki"] = package
        sys.modules["nki.language"] = language
        sys.modules["nki.isa"] = isa
        sys.modules["nki.isa.constants"] = constants
        sys.modules["nki.collectives"] = collectives
        sys.modules["nki.typing"] = _typing("nki.typing")
        _install_older_names()
    return True


def _typing(name: str) -> types.ModuleType:
    """The annotations of older kernels."""
    module = types.ModuleType(name, "Annotations of tensor arguments.")
    module.__dict__.update(tensor=NkiTensor, mutable_tensor=NkiTensor)
    return module


def _install_older_names() -> None:
    """``neuronxcc.nki.typing``, which published kernels still import."""
    if "neuronxcc" in sys.modules or importlib.util.find_spec("neuronxcc") is not None:
        return
    for name in ("neuronxcc", "neuronxcc.nki"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["neuronxcc.nki.typing"] = _typing("neuronxcc.nki.typing")


def _package() -> types.ModuleType:
    package = types.ModuleType("nki", "The NKI simulator under the name of the real package.")
    package.__path__ = []
    package.__dict__.update(
        __simulated__=True,
        jit=launch.jit,
        simulate=launch.simulate,
        language=language,
        isa=isa,
        collectives=collectives,
        NKIObject=NKIObject,
        dtype=str,  # an older spelling, in annotations of published kernels
    )
    return package
