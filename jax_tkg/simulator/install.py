"""Making ``import nki`` find the simulator where AWS's package is absent, and undoing it."""

import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from typing import Any

from jax_tkg.installed_nki import find_nki
from jax_tkg.simulator import collectives, isa, language
from jax_tkg.simulator.caller import caller
from jax_tkg.simulator.isa import constants
from jax_tkg.simulator.launch import jit, simulate
from jax_tkg.simulator.memory.objects import NKIObject
from jax_tkg.simulator.memory.tensor import NkiTensor
from jax_tkg.simulator.messages import did_you_mean

_installed: dict[str, types.ModuleType] = {}
"""The modules that `install` put into `sys.modules`, by name."""

_replaced: dict[str, types.ModuleType] = {}
"""What `sys.modules` had under their names before."""


def install(*, neuronxcc_typing: bool = True) -> bool:
    """Makes ``import nki`` give the simulator, unless AWS's package is installed in any version.

    Registers the modules nki, nki.language, nki.isa, nki.isa.constants, nki.collectives and
    nki.typing in `sys.modules`. ``nki.__simulated__`` is True, and the `origin` in the `__spec__`
    of each module is "jax_tkg.simulator".

    Args:
      neuronxcc_typing: whether to register ``neuronxcc.nki.typing``, too, if no package neuronxcc
        is installed: some published kernels import its annotations. Python cannot import it
        without its parents, so ``import neuronxcc`` then succeeds. That module has `__simulated__`
        as well, and no other contents; an attribute that it lacks raises an AttributeError that
        says what it is. Pass False if other code tells by it whether AWS's compiler is installed.

    Returns:
      Whether ``import nki`` now gives the simulator.
    """
    if find_nki() is not None:
        return False
    if not getattr(sys.modules.get("nki"), "__simulated__", False):
        _register("nki", _nki_modules())
    if neuronxcc_typing and not _is_importable("neuronxcc"):
        _register("neuronxcc", _neuronxcc_modules())
    return True


def uninstall() -> bool:
    """Undoes `install`: `sys.modules` has the entries again that it had before.

    Modules that have imported the simulator under the name ``nki``, such as `jax_tkg.kernels`,
    keep it.

    Returns:
      Whether there was something to undo.
    """
    found = bool(_installed)
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    for name, module in _replaced.items():
        sys.modules.setdefault(name, module)
    _installed.clear()
    _replaced.clear()
    return found


class _Loader(importlib.abc.Loader):
    """Fills a module with names that exist already."""

    def __init__(self, contents: Mapping[str, Any]):
        self._contents = contents

    def exec_module(self, module: types.ModuleType) -> None:
        """Adds the names to the module."""
        vars(module).update(self._contents)


def _register(package: str, modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts modules of one package into `sys.modules`, parents first, in place of all it has."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        _replaced[name] = sys.modules.pop(name)
    for name, contents in modules.items():
        is_package = any(other.startswith(f"{name}.") for other in modules)
        loader = _Loader(contents)
        spec = ModuleSpec(name, loader, origin="jax_tkg.simulator", is_package=is_package)
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        _installed[name] = sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


def _is_importable(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _nki_modules() -> dict[str, dict[str, Any]]:
    package = {
        "__doc__": "The NKI simulator of jax_tkg under the name of AWS's package.",
        "__simulated__": True,
        "jit": jit,
        "simulate": simulate,
        "NKIObject": NKIObject,
        "dtype": str,  # an older spelling, in annotations of published kernels
    }
    return {
        "nki": package,
        "nki.language": dict(_public(language)),
        "nki.isa": dict(_public(isa)),
        "nki.isa.constants": dict(_public(constants)),
        "nki.collectives": dict(_public(collectives)),
        "nki.typing": _typing(),
    }


def _neuronxcc_modules() -> dict[str, dict[str, Any]]:
    return {
        "neuronxcc": _stub("neuronxcc"),
        "neuronxcc.nki": _stub("neuronxcc.nki"),
        "neuronxcc.nki.typing": _typing(),
    }


def _public(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """The documentation and the public names of a module; other names are answered with one."""
    shown = module.__name__.replace("jax_tkg.simulator", "nki")

    def missing(name: str) -> Any:
        file, line = caller()
        raise AttributeError(
            f"module {shown!r} has no attribute {name!r}{did_you_mean(name, module.__all__)} "
            f"({file}:{line})"
        )

    yield "__doc__", module.__doc__
    yield "__getattr__", missing
    yield "__all__", module.__all__
    for name in module.__all__:
        yield name, getattr(module, name)


def _typing() -> dict[str, Any]:
    """The annotations of older kernels."""
    return {
        "__doc__": "Annotations of tensor arguments.",
        "__simulated__": True,
        "tensor": NkiTensor,
        "mutable_tensor": NkiTensor,
    }


def _stub(name: str) -> dict[str, Any]:
    """A package that only holds ``neuronxcc.nki.typing``."""
    what = "AWS's compiler is not installed; jax_tkg.simulator provides neuronxcc.nki.typing alone"

    def missing(attribute: str) -> Any:
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}: {what}")

    return {"__doc__": f"{what}.", "__simulated__": True, "__getattr__": missing}
