"""Static arguments that the kernel's own module defines, such as a member of an enumeration.

They cannot be imported where a launch is described, because the module imports nki. The generated
entry refers to them by name; the simulator looks them up.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class ModuleAttribute:
    """A value by its place in the kernel's module.

    Attributes:
      path: names joined by dots, such as "DtypeMode.OCP".
    """

    path: str

    @property
    def imported(self) -> str:
        """The name to import from the module."""
        return self.path.partition(".")[0]

    def __repr__(self) -> str:
        """The expression in a source that imports `imported`."""
        return self.path


def imported_names(static: dict[str, Any]) -> list[str]:
    """What a source that writes static arguments down must import from the kernel's module."""
    return sorted({v.imported for v in static.values() if isinstance(v, ModuleAttribute)})


def looked_up(static: dict[str, Any], module: str) -> dict[str, Any]:
    """Static arguments with values in place of attributes of the module, which is imported.

    Args:
      static: by name.
      module: the kernel's.
    """
    found = importlib.import_module(module)
    return {
        name: functools.reduce(getattr, value.path.split("."), found)
        if isinstance(value, ModuleAttribute)
        else value
        for name, value in static.items()
    }
