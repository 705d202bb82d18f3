"""A stand-in for AWS's nki package, with the simulator of jax_tkg as its compiler and its device.

It behaves at its edge as NKI 0.6 does, and refuses other cores than the compiler's as NKI 0.7 does,
so that the path through an installed nki can be executed: what `@nki.jit` gives, how a call finds
its framework, where the kernel's source is read, what aliases, and which custom call JAX gets. The
modules that kernels import are the simulator's.
"""

import sys

from jax_tkg.simulator import collectives, isa, language
from jax_tkg.simulator.isa import constants

for _name, _module in {
    "collectives": collectives,
    "isa": isa,
    "isa.constants": constants,
    "language": language,
}.items():
    sys.modules[f"{__name__}.{_name}"] = _module

from nki._version import __version__  # noqa: E402
from nki.framework.kernel import Kernel, jit  # noqa: E402

__all__ = ["Kernel", "__version__", "collectives", "isa", "jit", "language"]
