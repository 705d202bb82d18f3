"""The token-generation forward pass of a transformer as one JAX primitive.

`transformer_tkg` is the operation. `explain` says which implementation a call uses,
`is_within_limits` whether a kernel has room for it, and `dry_run` shows what a program lowers to on
AWS Neuron. The modules below hold what a decode loop needs beside it.

Names are loaded on first use: `import jax_tkg` alone imports neither JAX nor the simulator, and
`jax_tkg.simulator` works where JAX is not installed. After `import jax` it also registers the
package's pytrees, so that `jax.export.deserialize` can read a program that takes or returns them.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax_tkg import (
        bits,
        caches,
        errors,
        kinds,
        limits,
        masks,
        models,
        output_head,
        prefill,
        quantize,
        reference,
        rope,
        sharding,
        simulator,
        weights,
    )
    from jax_tkg.api import dry_run, explain, is_within_limits, transformer_tkg
    from jax_tkg.call.results import TransformerTkgCandidates, TransformerTkgOutput

__version__ = "0.2.0"

__all__ = [
    "TransformerTkgCandidates",
    "TransformerTkgOutput",
    "bits",
    "caches",
    "dry_run",
    "errors",
    "explain",
    "is_within_limits",
    "kinds",
    "limits",
    "masks",
    "models",
    "output_head",
    "prefill",
    "quantize",
    "reference",
    "rope",
    "sharding",
    "simulator",
    "transformer_tkg",
    "weights",
]

_HOMES = {
    "TransformerTkgCandidates": "jax_tkg.call.results",
    "TransformerTkgOutput": "jax_tkg.call.results",
    "dry_run": "jax_tkg.api",
    "explain": "jax_tkg.api",
    "is_within_limits": "jax_tkg.api",
    "transformer_tkg": "jax_tkg.api",
}
"""Where public names that are not modules are defined."""

# Type checkers read the imports above; a __getattr__ would make every misspelled name pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Loads a public name on its first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name)
        if home is None:
            return importlib.import_module(f"{__name__}.{name}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        """All names, also those that are not loaded yet."""
        return sorted({*globals(), *__all__})


# Where JAX is loaded later, so are these, with the first name that needs it.
if sys.modules.get("jax") is not None:
    for _module in ("bits", "weights", "call.results"):
        importlib.import_module(f"{__name__}.{_module}")
