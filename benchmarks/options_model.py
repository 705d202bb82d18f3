"""Modeled cost of each option of a layer, alone: what families beyond Llama add to it.

    python -m benchmarks.options_model [--context 2048] [--batches 1,8]

Nothing here was measured on a device: `jax_tkg.simulator.timing.timeline` schedules what the
simulator recorded. A layer of the model with one option is compared with the layer without any,
with all-reduces of the table of constants (17.5 us) and, in the columns "free", without.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import app, flags

from benchmarks import report
from jax_tkg.profile.layer import layer_figures, record_launches
from jax_tkg.profile.model_shapes import MODELS, Case, layer_case

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "bias of QKV": {"operands": ("bias_qkvs",)},
    "bias of the output": {"operands": ("bias_outs",)},
    "head norms": {"operands": ("W_gamma_qs", "W_gamma_ks")},
    "post norms": {"operands": ("W_gamma_post_attentions", "W_gamma_post_mlps")},
    "sinks": {"operands": ("sinks",)},
    "soft cap": {"options": (("attention_softcap", 50.0),)},
    "softmax scale": {"options": (("softmax_scale", 0.1),)},
    "GELU": {"options": (("activation", "gelu_tanh"),)},
}
"""Fields of a case by the name of the option that they set."""


def define_flags() -> None:
    """Not when the module is imported: others have flags of the same names."""
    flags.DEFINE_enum("model", "llama3_8b", list(MODELS), "Which model.")
    flags.DEFINE_integer("tensor_parallel", 8, "Ranks.")
    flags.DEFINE_integer("context", 2048, "Cache slots, new tokens included.")
    flags.DEFINE_list("batches", ["1", "8"], "Sequences per rank.")
    flags.DEFINE_bool("residual_on_chip", True, "All-reduces go from SBUF to SBUF.")


def _microseconds(case: Case) -> tuple[float, float]:
    """With all-reduces and without."""
    launches = record_launches(case)
    whole, free = (layer_figures(launches, collectives=each) for each in (True, False))
    return whole.latency / 1e3, free.latency / 1e3


def main(_: list[str]) -> None:
    values = flags.FLAGS
    model, rows = MODELS[values.model], []
    for batch in map(int, values.batches):
        plain = layer_case(
            *(model, model.kinds()[0]),
            tensor_parallel=values.tensor_parallel,
            context=values.context,
            B=batch,
            S=1,
            residual_on_chip=values.residual_on_chip,
        )
        base = _microseconds(plain)
        for name, fields in OPTIONS.items():
            whole, free = _microseconds(dataclasses.replace(plain, **fields))
            rows.append(
                {
                    "B": batch,
                    "option": name,
                    "us a layer": whole,
                    "more us": whole - base[0],
                    "free, us": free,
                    "free, more us": free - base[1],
                }
            )
    report.print_table(rows)
    heading = f"Options of a layer of {values.model}, tp={values.tensor_parallel}, modeled"
    print("", report.write_markdown("options_model", heading, rows), sep="\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
