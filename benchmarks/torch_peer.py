"""transformers and PyTorch on the CPU, as peers."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.measuring import Candidate
from benchmarks.shapes import Shape

NAME = "transformers"

_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def missing() -> str | None:
    """What is not installed, or None."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return None


def random_model(shape: Shape, dtype: str) -> Any:
    """A `LlamaModel` of a shape, with the library's random weights and hardly a vocabulary."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=shape.H,
        intermediate_size=shape.I,
        num_hidden_layers=shape.L,
        num_attention_heads=shape.q,
        num_key_value_heads=shape.k,
        head_dim=shape.d,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with torch.device("meta"):
        model = transformers.LlamaModel(config)
    model = model.to(getattr(torch, _DTYPES[dtype])).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=shape.H**-0.5)
    model.rotary_emb = type(model.rotary_emb)(config)
    return model.eval()


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights; an embedding that is the head too counts once."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


def pretrained_model(path: str | os.PathLike[str], dtype: str) -> Any:
    """The causal language model of a GGUF file, its weights in `dtype`."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.disable_progress_bar()
    file = pathlib.Path(path)
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # Versions before this class always unpack the weights; later ones have to be told.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=getattr(torch, _DTYPES[dtype]), **options
    ).eval()


def candidate(model: Any, batch: int, length: int) -> Candidate:
    """One step of `batch` sequences with `length` tokens in their cache, again and again.

    The cache is transformers' default one, cut back after each step.
    """
    import torch

    cache = _random_cache(model, batch, length)
    tokens = torch.ones((batch, 1), dtype=torch.long)

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache.crop(-1)

    return Candidate(NAME, run)


def _random_cache(model: Any, batch: int, length: int) -> Any:
    """transformers' default cache with `length` random tokens."""
    import torch
    import transformers

    config = model.config
    rng = np.random.default_rng(0)
    cache = transformers.DynamicCache(config=config)
    sizes = (batch, config.num_key_value_heads, length, config.head_dim)
    for layer in range(config.num_hidden_layers):
        keys, values = (
            torch.tensor(rng.uniform(-1, 1, sizes), dtype=model.dtype) for _ in range(2)
        )
        cache.update(keys, values, layer)
    return cache


def random_experts(sizes: Mapping[str, Any], dtype: str) -> Any:
    """A `Qwen3MoeForCausalLM` of a configuration, with the library's random weights."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**sizes)
    model = transformers.Qwen3MoeForCausalLM(config)
    return model.to(getattr(torch, _DTYPES[dtype])).eval()


def experts_candidates(model: Any, tokens: np.ndarray, length: int) -> list[Candidate]:
    """Steps with `length` tokens in the caches, by each of transformers' ways to run experts.

    Args:
      model: as `random_experts` makes it.
      tokens: [n, B], those of n steps in turn.
      length: slots of the caches.
    """
    import torch

    given = itertools.cycle([torch.from_numpy(row[:, None]) for row in tokens])
    cache = _random_cache(model, tokens.shape[1], length)

    def run(way: str) -> None:
        model.set_experts_implementation(way)
        with torch.inference_mode():
            logits = model(input_ids=next(given), past_key_values=cache, use_cache=True).logits
            logits[:, -1].argmax(-1)
            cache.crop(-1)

    ways = ("eager", "batched_mm", "grouped_mm")
    return [Candidate(f"{NAME}, {way}", functools.partial(run, way)) for way in ways]


def prompt_candidate(model: Any, prompt: Sequence[int]) -> Candidate:
    """Reading a prompt at once into a fresh cache, and the logits after its last token."""
    import torch

    tokens = torch.tensor([list(prompt)])

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits.argmax(-1)

    return Candidate(NAME, run)
