"""Whether AWS's nki package is installed, which version it is, whether it is new enough, and how it
reads kernels.

Nothing is imported to find out: neither nki itself nor the simulator.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
from importlib.machinery import ModuleSpec

NEEDED_VERSION = (0, 6, 0)
"""The first release with `nl.fori_loop` and with functions defined inside a kernel."""

TRACED_VERSION = (0, 7, 0)
"""The first release that traces kernels by default."""

FRONT_END_VARIABLE = "NKI_COMPILER_FRONTEND"
"""Environment variable that chooses how NKI reads a kernel."""

FRONT_ENDS = ("parser", "tracer", "custom")
"""Its values in all releases."""

FIRST_VERSION = (0, 1)
"""The first release of AWS's package. The public index has a placeholder below it, nki 0.0.1."""


@dataclasses.dataclass(frozen=True)
class NkiPackage:
    """An installed nki package of AWS's.

    Attributes:
      version: its version as its metadata gives it, such as "0.6.0+123".
      location: the folder or file that `import nki` reads.
    """

    version: str
    location: pathlib.Path

    @property
    def is_supported(self) -> bool:
        """Whether the kernels of jax_tkg compile with it."""
        return _release(self.version) >= NEEDED_VERSION


def front_ends(version: str) -> tuple[str | None, ...]:
    """The ways in which a release of nki reads a kernel, its default first.

    NKI 0.6 parses kernels or traces them. NKI 0.7 traces them, and has the parser under another
    name, for the last time (Neuron SDK 2.33, announcement of changes to NKI specialization).

    Args:
      version: of nki, such as "0.6.0+123".

    Returns:
      Values of NKI_COMPILER_FRONTEND; None: not set.
    """
    release = _release(version)
    if release < TRACED_VERSION:
        return ("parser", "tracer")
    return (None, "custom") if release[:2] == TRACED_VERSION[:2] else (None,)


def find_nki() -> NkiPackage | None:
    """AWS's package, of any version, or None.

    The simulator under the name `nki`, a folder without `__init__.py`, a module of that name which
    no installed distribution owns, and the placeholder of the public index are not AWS's package.
    """
    found, _ = _look()
    return found


def nki_problem() -> str | None:
    """Why AWS's nki cannot be used here, in one line; None: it can."""
    found, instead = _look()
    needed = ".".join(map(str, NEEDED_VERSION))
    if found is None:
        return f"AWS's nki package is not installed (needed: nki >= {needed}; found: {instead})"
    if not found.is_supported:
        return (
            f"the installed nki package is too old (needed: nki >= {needed}; found: nki "
            f"{found.version} in {found.location})"
        )
    return None


def _look() -> tuple[NkiPackage | None, str]:
    """AWS's package, or None and what was found in its place."""
    module = sys.modules.get("nki")
    if getattr(module, "__simulated__", False):
        return None, "the simulator under its name"
    specification = module.__spec__ if module is not None else importlib.util.find_spec("nki")
    if specification is None:
        return None, "nothing"
    if specification.origin is None:
        folders = list(specification.submodule_search_locations or ())
        return None, f"the folder {folders[0]} without __init__.py" if folders else "nothing"
    location = _location(specification)
    version = _installed_version(location)
    if version is None:
        return None, f"{location}, which no installed distribution named nki owns"
    if _release(version) < FIRST_VERSION:
        return None, f"nki {version}, the placeholder of the public package index, in {location}"
    return NkiPackage(version, location), ""


def _location(specification: ModuleSpec) -> pathlib.Path:
    origin = pathlib.Path(str(specification.origin)).resolve()
    return origin.parent if origin.name == "__init__.py" else origin


def _installed_version(location: pathlib.Path) -> str | None:
    """Version of the distribution that is installed beside the module."""
    for distribution in importlib.metadata.distributions(name="nki"):
        owned = pathlib.Path(str(distribution.locate_file("nki"))).resolve()
        if location in (owned, owned.with_suffix(".py")):
            return distribution.version
    return None


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 6, 0) of "0.6.0+123"."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in numbers.group().split(".")) if numbers else ()
