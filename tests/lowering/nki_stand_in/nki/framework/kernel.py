"""What `@nki.jit` gives: a frozen object that holds the function and how it is to be compiled."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from jax_tkg.simulator.machine.machine import running_core


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel. It compiles for `lnc` physical cores: `kernel[2](...)` for two."""

    func: Callable[..., Any]
    lnc: int = 1

    def __post_init__(self) -> None:
        if self.lnc not in (1, 2):
            raise ValueError(f"NKI supports an LNC of 1 or 2, got {self.lnc}")
        object.__setattr__(self, "__wrapped__", self.func)

    def __getitem__(self, lnc: int) -> Kernel:
        return dataclasses.replace(self, lnc=lnc)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Inside of a kernel that is being compiled it is a plain function.
        if running_core() is not None:
            return self.func(*args, **kwargs)
        from nki.framework.compiled import CompiledKernel

        return CompiledKernel(self.func, self.lnc)(*args, **kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by the names of the function's parameters."""
        return dict(inspect.signature(self.func).bind(*args, **kwargs).arguments)


def jit(function: Any = None, **options: Any) -> Any:
    """Makes a function a kernel; a kernel stays what it is."""
    if function is None:
        return lambda decorated: jit(decorated, **options)
    return function if isinstance(function, Kernel) else Kernel(function, **options)
