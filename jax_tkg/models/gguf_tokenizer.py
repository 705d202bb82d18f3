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

_END_TEXTS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
    )
)
"""Texts of tokens that end generation in llama.cpp (`special_eog_ids`, llama-vocab.cpp)."""

_NO_END_BESIDE = (
    (("<|return|>", "<|call|>"), "<|end|>"),
    (("<|calls|>", "<|flush|>"), "<|end|>"),
    (("<|tool_response>",), "</s>"),
)
"""Where a vocabulary has all of the first, the other text is no end; likewise from llama.cpp."""

_TEMPLATE_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
"""Names of special tokens in templates, and in the metadata, whose spelling this is."""

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

    Generation ends at the tokens that the metadata names and at those whose text says so, as
    llama.cpp has it: many files name one of the model's several end tokens only.

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
    named = {_token_id(file, role, tokens) for role in ("eos", "eot", "eom")} - {None}
    by_text = _ends_by_text(tokens)
    stops = sorted(index for index in named | by_text if index is not None)
    if not stops:
        raise ModelError(f"{file.path}: metadata field tokenizer.ggml.eos_token_id is missing")
    template = file.field("tokenizer.chat_template", None, kind=str)
    backend = _backend(file, name, tokens, by_text)
    return Tokenizer(
        backend,
        begin_token=begin if adds_begin else None,
        stop_tokens=stops,
        chat_template=None
        if template is None
        else ChatTemplate(template, _special_tokens(file, tokens), file.path),
        same_text=_repeated(backend, tokens),
    )


def _token_id(file: GgufFile, role: str, tokens: list[str]) -> int | None:
    name = f"tokenizer.ggml.{role}_token_id"
    index = file.field(name, None, kind=int)
    if index is not None and not 0 <= index < len(tokens):
        raise ModelError(f"{file.path}: {name}: expected 0..{len(tokens) - 1}, got {index}")
    return index


def _ends_by_text(tokens: list[str]) -> set[int]:
    """Ids of tokens that end a text or a turn, whatever the metadata says of them."""
    ends = {token: index for index, token in enumerate(tokens) if token in _END_TEXTS}
    for others, dropped in _NO_END_BESIDE:
        if dropped in ends and all(other in ends for other in others):
            del ends[dropped]
    return set(ends.values())


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    """The texts of special tokens by the names that templates use."""
    ids = {name: _token_id(file, role, tokens) for name, role in _TEMPLATE_NAMES.items()}
    texts = {name: tokens[index] for name, index in ids.items() if index is not None}
    # Templates add these two to other texts without asking whether they are there.
    return {"bos_token": "", "eos_token": ""} | texts


def _repeated(backend: tokenizers.Tokenizer, tokens: list[str]) -> dict[int, int]:
    """Ids whose text a later token has too, which is the one that texts are encoded with."""
    ids = backend.get_vocab()
    return {index: ids[token] for index, token in enumerate(tokens) if ids[token] != index}


def _backend(file: GgufFile, name: str, tokens: list[str], ends: set[int]) -> tokenizers.Tokenizer:
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
    whole = {
        index: kind
        for index, kind in enumerate(types)
        if kind in (_CONTROL_TOKEN, _USER_DEFINED_TOKEN)
    }
    whole.update((index, _CONTROL_TOKEN) for index in ends)
    for kind in (_CONTROL_TOKEN, _USER_DEFINED_TOKEN):
        special = kind == _CONTROL_TOKEN
        texts = [_whole(tokens[index], special) for index in whole if whole[index] == kind]
        if special:
            backend.add_special_tokens(texts)
        else:
            backend.add_tokens(texts)
    return backend


def _whole(token: str, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False, special=special)
