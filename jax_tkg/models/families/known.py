"""All families by name, and why others are refused."""

from __future__ import annotations

from collections.abc import Mapping

from jax_tkg.models.errors import ModelError
from jax_tkg.models.families import gemma, glm4, gpt_oss, granite, llama, phi, qwen, smollm3
from jax_tkg.models.families.family import GgufFamily, JsonFamily
from jax_tkg.models.typed_keys import TypedKeys

JSON_FAMILIES: Mapping[str, JsonFamily] = {
    family.model_type: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        llama.MIXTRAL,
        qwen.QWEN2,
        qwen.QWEN3,
        qwen.QWEN3_MOE,
        gemma.GEMMA2,
        gemma.GEMMA3,
        phi.PHI3,
        smollm3.SMOLLM3,
        granite.GRANITE,
        granite.GRANITE_MOE,
        granite.GRANITE_MOE_SHARED,
        glm4.GLM4,
        gpt_oss.GPT_OSS,
    )
}
"""The families in the format of Hugging Face transformers, by `model_type`."""

GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    family.architecture: family
    for family in (
        llama.LLAMA_GGUF,
        qwen.QWEN2_GGUF,
        qwen.QWEN3_GGUF,
        qwen.QWEN3_MOE_GGUF,
        gemma.GEMMA2_GGUF,
        gemma.GEMMA3_GGUF,
        phi.PHI3_GGUF,
        smollm3.SMOLLM3_GGUF,
        granite.GRANITE_GGUF,
        granite.GRANITE_MOE_GGUF,
        glm4.GLM4_GGUF,
        gpt_oss.GPT_OSS_GGUF,
    )
}
"""The families in GGUF files, by `general.architecture`."""

_EXPERTS = "a mixture of experts that no test compares"
_NO_PRE_NORM = "its blocks have no norm before them"
_PARALLEL = "attention and MLP run in parallel"
_LATENT = "multi-head latent attention"
_RECURRENT = "layers of linear attention or a state-space model"
_LAYER_NORM = "LayerNorm in place of RMSNorm"
_VISION = "a model of images and text; its text model alone has another type"

REFUSED: Mapping[str, str] = {
    "olmo": "LayerNorm without a gain",
    "olmo2": f"{_NO_PRE_NORM}, and whole projections are normalized",
    "olmo3": f"{_NO_PRE_NORM}, and whole projections are normalized",
    "exaone4": _NO_PRE_NORM,
    "cohere": f"{_PARALLEL}, with {_LAYER_NORM}",
    "cohere2": f"{_PARALLEL}, with {_LAYER_NORM}",
    "command-r": f"{_PARALLEL}, with {_LAYER_NORM}",
    "phi": f"{_PARALLEL}, with {_LAYER_NORM}",
    "phi2": f"{_PARALLEL}, with {_LAYER_NORM}",
    "gpt_neox": f"{_PARALLEL}, with {_LAYER_NORM}",
    "gptneox": f"{_PARALLEL}, with {_LAYER_NORM}",
    "falcon": f"{_PARALLEL}, with {_LAYER_NORM}",
    "gpt2": f"{_LAYER_NORM} and learned positions",
    "starcoder2": f"{_LAYER_NORM} and an MLP without a gate",
    "nemotron": f"{_LAYER_NORM} and an MLP without a gate",
    "stablelm": _LAYER_NORM,
    "chatglm": "an older GLM-4, whose files are otherwise; glm4 is supported",
    "gemma": "Gemma 1, which no test compares; Gemma 2 and 3 are supported",
    "gemma3": _VISION,
    "gemma3n": "per-layer embeddings and activation sparsity",
    "llama4": f"{_EXPERTS}, chunked attention and norms without gains",
    "llama4_text": f"{_EXPERTS}, chunked attention and norms without gains",
    "mistral3": _VISION,
    "ministral": "windows by layer, which no test compares",
    "mllama": _VISION,
    "qwen2_vl": _VISION,
    "qwen2_5_vl": _VISION,
    "qwen3_vl": _VISION,
    "phi4_multimodal": _VISION,
    "qwen2_moe": _EXPERTS,
    "qwen2moe": _EXPERTS,
    "phimoe": _EXPERTS,
    "olmoe": "whole projections of queries and keys are normalized",
    "granitemoehybrid": f"{_EXPERTS} and {_RECURRENT}",
    "granitehybrid": _RECURRENT,
    "glm4_moe": _EXPERTS,
    "glm4moe": _EXPERTS,
    "dbrx": _EXPERTS,
    "deepseek_v2": f"{_LATENT} and {_EXPERTS}",
    "deepseek_v3": f"{_LATENT} and {_EXPERTS}",
    "deepseek2": f"{_LATENT} and {_EXPERTS}",
    "kimi_k2": f"{_LATENT} and {_EXPERTS}",
    "minicpm3": _LATENT,
    "qwen3_next": f"{_RECURRENT} and {_EXPERTS}",
    "qwen3next": f"{_RECURRENT} and {_EXPERTS}",
    "mamba": _RECURRENT,
    "mamba2": _RECURRENT,
    "jamba": f"{_RECURRENT} and {_EXPERTS}",
    "falcon_h1": _RECURRENT,
    "lfm2": "layers of convolutions",
    "bamba": _RECURRENT,
}
"""Families that the operation, or the loaders, do not have, under either format's name, and why."""


def json_family(keys: TypedKeys) -> JsonFamily:
    """The family of a `config.json`.

    Raises:
      ModelError: it is none of `JSON_FAMILIES`; the message says why, where that is known.
    """
    return JSON_FAMILIES[_name(keys, "model_type", JSON_FAMILIES)]


def gguf_family(keys: TypedKeys) -> GgufFamily:
    """The family of a GGUF file's metadata; see `json_family`."""
    return GGUF_FAMILIES[_name(keys, "general.architecture", GGUF_FAMILIES)]


def _name(keys: TypedKeys, key: str, families: Mapping[str, object]) -> str:
    name = keys.raw(key)
    if isinstance(name, str) and name in families:
        return name
    error = keys.error(key, " or ".join(map(repr, families)))
    reason = REFUSED.get(name) if isinstance(name, str) else None
    raise error if reason is None else ModelError(f"{error}: {reason}")
