"""Products of a few rows with the weights of some layers on this machine's CPU, in several forms.

python -m benchmarks.product_forms_cpu [--dtypes bfloat16] [--rows 2,4]

The weights of layers, one after the other, as a decode step reads them: in the forms of
`jax_tkg.cpu.formulation`, over one row in the form that is chosen for it. All take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import report
from benchmarks.measuring import Candidate, measure_in_turns
from jax_tkg.bits import as_bits
from jax_tkg.cpu import formulation
from jax_tkg.cpu.formulation import Form
from jax_tkg.cpu.products import multiply
from jax_tkg.cpu.stored_weight import StoredWeight

LAYERS = {
    "H=576": (12, ((576, 960), (576, 576), (576, 3072), (1536, 576))),
    "H=2048": (1, ((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048))),
}
"""By the width of the residual stream: how many layers, and the shapes of their weights."""

_DTYPES = flags.DEFINE_multi_enum(
    "dtypes",
    ["float32", "bfloat16", "float8_e4m3fn"],
    ["float32", "bfloat16", "float8_e4m3fn"],
    "Of the weights.",
)
_ROWS = flags.DEFINE_list("rows", ["2", "4", "8", "16", "32"], "Rows of activations.")
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each candidate.", lower_bound=1)


def main(_: Sequence[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    report.print_load()
    table = []
    for dtype in dict.fromkeys(_DTYPES.value):
        for name, (layers, shapes) in LAYERS.items():
            weights = [_weight(shape, dtype) for _ in range(layers) for shape in shapes]
            one = _candidate("one row", weights, 1, None)
            for rows in map(int, _ROWS.value):
                forms = [_candidate(form.name, weights, rows, form) for form in Form]
                timings = measure_in_turns([one, *forms], _TURNS.value, 2)
                times = {f.name: timings[f.name].ratio_to(timings["one row"]) for f in Form}
                stored = StoredWeight(weights[0])
                chosen = formulation.choose(stored, rows, _activations(stored)).name
                table.append(
                    {"weights": dtype, "layers": name, "rows": rows, **times, "chosen": chosen}
                )
    report.print_table(table)
    heading = "Products with the weights of some layers, over one row"
    print("", report.write_markdown("product_forms_cpu", heading, table), sep="\n")


def _weight(shape: tuple[int, int], dtype: str) -> Any:
    values = np.random.default_rng(0).standard_normal(shape, np.float32) * shape[0] ** -0.5
    array = jnp.asarray(values).astype(dtype)
    return array if dtype == "float32" else as_bits(array)


def _activations(weight: StoredWeight) -> Any:
    """The dtype of the activations that are multiplied by a weight."""
    return jnp.float32 if weight.dtype == jnp.float32 else jnp.bfloat16


def _candidate(name: str, weights: list[Any], rows: int, form: Form | None) -> Candidate:
    dtype = _activations(StoredWeight(weights[0]))
    width = weights[0].shape[0]

    def step(weights: list[Any], stream: jax.Array) -> jax.Array:
        for weight in weights:
            n, m = weight.shape
            activations = jnp.tile(stream, (1, -(-n // width)))[:, :n].astype(dtype)
            product = multiply(activations, StoredWeight(weight), form)
            stream = stream + 0.01 * jnp.tile(product, (1, -(-width // m)))[:, :width]
        return stream

    stream = jnp.ones((rows, width), jnp.float32)
    run = jax.jit(step).lower(weights, stream).compile()
    return Candidate(name, lambda: run(weights, stream).block_until_ready())


if __name__ == "__main__":
    app.run(main)
