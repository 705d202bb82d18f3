"""A kernel that is called from outside: which framework calls, and what is compiled already."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from nki.compiler import frontend, program
from nki.framework.kernel import Kernel


@dataclasses.dataclass(frozen=True)
class CompiledKernel(Kernel):
    """Compiles for the framework whose arrays stand among the top-level arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        # Names of types decide, so that no framework is imported; JAX's tracers are JAX's too.
        modules = [type(value).__module__ for value in given]
        if any(module.startswith(("jax.", "jaxlib.")) for module in modules):
            from nki.framework.jax import JaxKernel

            return JaxKernel(self.func, self.lnc)(*args, **kwargs)
        return _run_standalone(self, args, kwargs)

    def compiled(self, arguments: dict[str, Any], ranks: int) -> program.Program:
        """The compiled kernel, which the function keeps for equal shapes and dtypes.

        Args:
          arguments: by name; arrays count by shape and dtype.
          ranks: how many run at once.
        """
        chosen = frontend.chosen()
        frontend.check_cores(self.lnc)
        target = frontend.target()
        kept = self.func.__dict__.setdefault("_nki_compile_cache", {})
        described = {name: _described(value) for name, value in arguments.items()}
        key = repr((described, self.lnc, target, chosen, ranks))
        if key not in kept:
            function = frontend.function_to_compile(self.func, chosen)
            kept[key] = program.compile_kernel(function, arguments, self.lnc, target, ranks)
        return kept[key]


def is_array(value: Any) -> bool:
    """Whether an argument is a tensor of the kernel."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _described(value: Any) -> Any:
    return (tuple(value.shape), str(value.dtype)) if is_array(value) else value


def _run_standalone(kernel: CompiledKernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """NumPy arrays run at once; a list has an array for each rank, and gives a list of results."""
    arguments = kernel.bind(args, kwargs)
    lengths = {len(value) for value in arguments.values() if isinstance(value, list)}
    if not lengths:
        (result,) = kernel.compiled(arguments, 1).run([_arrays(arguments)])
        return result
    if len(lengths) > 1 or any(isinstance(value, np.ndarray) for value in arguments.values()):
        raise RuntimeError("several ranks: expected lists of one length, with an array per rank")
    (ranks,) = lengths
    each = [
        {n: value[rank] if isinstance(value, list) else value for n, value in arguments.items()}
        for rank in range(ranks)
    ]
    return kernel.compiled(each[0], ranks).run([_arrays(rank) for rank in each])


def _arrays(arguments: dict[str, Any]) -> list[Any]:
    return [value for value in arguments.values() if is_array(value)]
