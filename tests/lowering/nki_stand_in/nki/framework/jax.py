"""The call from JAX: a custom call whose config names the compiled kernel."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import jax

from nki import runtime
from nki.framework.compiled import CompiledKernel, is_array

TARGET = "AwsNeuronCustomNativeKernel"
STATUS_RETURNING = 2


@dataclasses.dataclass(frozen=True)
class JaxKernel(CompiledKernel):
    """A kernel on JAX arrays or tracers, each a top-level argument."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self.bind(args, kwargs)
        for name, value in arguments.items():
            if any("jax" in type(leaf).__module__ for leaf in _leaves(value)):
                raise TypeError(f"{name}: a list of JAX arrays is no argument of a kernel")
        mesh = jax.sharding.get_abstract_mesh()
        program = self.compiled(arguments, max(mesh.size, 1))
        config = base64.b64encode(json.dumps(program.config()).encode()).decode()
        operands = [value for value in arguments.values() if is_array(value)]
        version = STATUS_RETURNING
        if runtime.is_served():
            version = runtime.CALL_VERSION
            names = tuple(mesh.axis_names)
            operands.append(jax.numpy.int32(jax.lax.axis_index(names) if names else 0))
        call = jax.ffi.ffi_call(
            TARGET,
            [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in program.outputs],
            custom_call_api_version=version,
            legacy_backend_config=config,
            input_output_aliases=dict(program.aliases),
        )
        results = call(*operands)
        return tuple(results) if program.returns_tuple else results[0]


def _leaves(value: Any) -> list[Any]:
    """What stands inside of lists and tuples."""
    if not isinstance(value, list | tuple):
        return []
    return [leaf for entry in value for leaf in (_leaves(entry) or [entry])]
