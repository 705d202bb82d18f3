"""Published times per token of whole models on Trainium2, beside a modeled layer.

    python -m benchmarks.published_models

The published figures are of AWS's serving stack, not of this kernel: a time per output token at one
sequence, divided by the layers. Beside it stand the HBM bound of a rank's weights, the modeled
layer of this kernel with collectives free and with all-reduces of the table's latency, and the
remainder: what the model leaves to the stack's own kernels, host and runtime.
"""

from __future__ import annotations

import dataclasses

from absl import app

from benchmarks import report
from jax_tkg.profile.layer import bound, layer_figures, record_launches
from jax_tkg.profile.model_shapes import Case


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A published time per output token.

    Attributes:
      name: of the model.
      source: document and scenario.
      milliseconds: per output token, the median.
      layers: of the model.
      case: the sizes of a rank's layer, with a context of the order of the published prompts.
    """

    name: str
    source: str
    milliseconds: float
    layers: int
    case: Case


def _case(H: int, intermediate: int, q_heads: int, ranks: int) -> Case:
    """A rank's layer with one KV head, which ranks share if they are more than the KV heads.

    The MLP's columns of a rank are rounded up to the 128 that the kernel needs.
    """
    return Case(
        B=1,
        S=1,
        H=H,
        I=-(-intermediate // (128 * ranks)) * 128,
        d=128,
        q=q_heads // ranks,
        k=1,
        S_ctx=1024,
        tensor_parallel=ranks,
        residual_on_chip=True,
    )


MODELS = (
    PublishedModel(
        "Llama-3.3-70B, TP=64",
        "NxD Inference tutorial, trn2.48xlarge, bfloat16, no speculation",
        19.6,
        80,
        _case(8192, 28672, 64, 64),
    ),
    PublishedModel(
        "Llama-3.1-405B, TP=64",
        "NxD Inference tutorial, trn2.48xlarge, bfloat16, no speculation",
        37.9,
        126,
        _case(16384, 53248, 128, 64),
    ),
    PublishedModel(
        "Llama-3.1-8B, TP=8",
        "vLLM on Neuron tutorial of EAGLE-3, without speculation",
        10.52,
        32,
        _case(4096, 14336, 32, 8),
    ),
)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    if len(arguments) > 1:
        raise app.UsageError(f"expected no arguments, got {arguments[1:]}")
    rows = []
    for model in MODELS:
        launches = record_launches(model.case)
        published = 1e3 * model.milliseconds / model.layers
        slow = layer_figures(launches).latency / 1e3
        rows.append(
            {
                "model": model.name,
                "published us a layer": round(published, 1),
                "bound": round(bound(model.case) / 1e3, 1),
                "ours, free all-reduces": round(
                    layer_figures(launches, collectives=False).latency / 1e3, 1
                ),
                "with all-reduces": round(slow, 1),
                "remainder": round(published - slow, 1),
            }
        )
    report.print_table(rows)


if __name__ == "__main__":
    app.run(main)
