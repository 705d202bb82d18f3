"""Whether AWS's own `nki` package is installed. Imports nothing else of the package."""

from __future__ import annotations

import importlib.util
import sys


def real_nki_present() -> bool:
    """Whether ``import nki`` gives AWS's own package, and not the simulator or nothing."""
    module = sys.modules.get("nki")
    if module is not None:
        return not getattr(module, "__simulated__", False)
    return importlib.util.find_spec("nki") is not None
