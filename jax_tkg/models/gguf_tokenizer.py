"""The tokenizer and chat template inside a GGUF file."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.gguf import GgufFile
from jax_tkg.models.tokenizer import Tokenizer

_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that are never text; from the GGUF specification."""
_USER_DEFINED_TOKEN = 4
"""`tokenizer.ggml.token_type` of tokens matched whole before any other."""

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text into words, from its published tokenizer."""

_GPT2_NAMES = ("gpt-2",)
_SMOLLM_NAMES = ("smollm",)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """How a text is split before BPE, by the name that the file gives; None where it is unknown."""
    if name in _GPT2_NAMES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _SMOLLM_NAMES:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name in _LLAMA3_NAMES:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return None


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Builds the tokenizer from a GGUF file's metadata.

    Raises:
      ModelError: no byte-level BPE, an unknown pre-tokenizer, or missing or damaged metadata.
    """
    kind = file.field("tokenizer.ggml.model", kind=str)
    if kind != "gpt2":
        raise ModelError(
            f"{file.path}: tokenizer.ggml.model: expected 'gpt2' (byte-level BPE), got {kind!r}"
        )
    name = file.field("tokenizer.ggml.pre", kind=str)
    tokens = file.field("tokenizer.ggml.tokens", kind=list)
    begin = _token_id(file, "bos", tokens)
    # Files of Llama 3 made before the field was common rely on its being true.
    adds_begin = file.field("tokenizer.ggml.add_bos_token", name in _LLAMA3_NAMES, kind=bool)
    ends = [_token_id(file, role, tokens) for role in ("eos", "eot", "eom")]
    if ends[0] is None:
        raise ModelError(f"{file.path}: metadata field tokenizer.ggml.eos_token_id is missing")
    template = file.field("tokenizer.chat_template", None, kind=str)
    names = {"bos_token": "" if begin is None else tokens[begin], "eos_token": tokens[ends[0]]}
    return Tokenizer(
        _backend(file, name, tokens),
        begin_token=begin if adds_begin else None,
        stop_tokens=sorted({end for end in ends if end is not None}),
        chat_template=None if template is None else ChatTemplate(template, names, file.path),
    )


def _token_id(file: GgufFile, role: str, tokens: list[str]) -> int | None:
    name = f"tokenizer.ggml.{role}_token_id"
    index = file.field(name, None, kind=int)
    if index is not None and not 0 <= index < len(tokens):
        raise ModelError(f"{file.path}: {name}: expected 0..{len(tokens) - 1}, got {index}")
    return index


def _backend(file: GgufFile, name: str, tokens: list[str]) -> tokenizers.Tokenizer:
    pre_tokenizer = _pre_tokenizer(name)
    if pre_tokenizer is None:
        known = ", ".join((*_GPT2_NAMES, *_SMOLLM_NAMES, *_LLAMA3_NAMES))
        raise ModelError(f"{file.path}: tokenizer.ggml.pre: expected one of {known}, got {name!r}")
    merges = file.field("tokenizer.ggml.merges", kind=list)
    types = file.field("tokenizer.ggml.token_type", [1] * len(tokens), kind=list)
    if len(types) != len(tokens):
        raise ModelError(
            f"{file.path}: tokenizer.ggml.token_type: expected {len(tokens)} entries, one per "
            f"token, got {len(types)}"
        )
    try:
        model: Any = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=name in _LLAMA3_NAMES,
        )
    # The package raises plain Exception where a merge names no token of the vocabulary.
    except Exception as error:
        raise ModelError(f"{file.path}: tokenizer.ggml.merges: {one_line(error)}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, types, strict=True))
    backend.add_special_tokens(
        [_whole(token, special=True) for token, kind in kinds if kind == _CONTROL_TOKEN]
    )
    backend.add_tokens(
        [_whole(token, special=False) for token, kind in kinds if kind == _USER_DEFINED_TOKEN]
    )
    return backend


def _whole(token: str, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False, special=special)
