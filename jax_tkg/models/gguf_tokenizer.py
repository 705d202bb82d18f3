"""The tokenizer and chat template inside a GGUF file."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.tokenizer import Tokenizer
from jax_tkg.models.typed_keys import Range, TypedKeys

_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that are never text; from the GGUF specification."""
_TOKEN_TYPES = Range(0, 6)
"""The values of `tokenizer.ggml.token_type`."""
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
    keys = file.metadata
    kind = keys.string("tokenizer.ggml.model")
    if kind != "gpt2":
        raise keys.error(
            "tokenizer.ggml.model",
            "'gpt2', byte-level BPE (SentencePiece and other vocabularies are not supported)",
        )
    name = keys.string("tokenizer.ggml.pre")
    tokens = keys.strings("tokenizer.ggml.tokens")
    begin = _token_id(keys, "bos", tokens)
    # Files of Llama 3 made before the field was common rely on its being true.
    adds_begin = keys.boolean("tokenizer.ggml.add_bos_token", default=name in _LLAMA3_NAMES)
    named = {_token_id(keys, role, tokens) for role in ("eos", "eot", "eom")} - {None}
    by_text = _ends_by_text(tokens)
    stops = sorted(index for index in named | by_text if index is not None)
    if not stops:
        raise keys.error("tokenizer.ggml.eos_token_id", "the id of a token that ends a text")
    template = "tokenizer.chat_template"
    special_tokens = _special_tokens(keys, tokens)
    backend = _backend(keys, name, tokens, by_text)
    return Tokenizer(
        backend,
        begin_token=begin if adds_begin else None,
        stop_tokens=stops,
        chat_template=ChatTemplate(keys.string(template), special_tokens, file.path)
        if template in keys
        else None,
        same_text=_repeated(backend, tokens),
    )


def _token_id(keys: TypedKeys, role: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    return keys.integer(key, Range(0, len(tokens) - 1)) if key in keys else None


def _ends_by_text(tokens: list[str]) -> set[int]:
    """Ids of tokens that end a text or a turn, whatever the metadata says of them."""
    ends = {token: index for index, token in enumerate(tokens) if token in _END_TEXTS}
    for others, dropped in _NO_END_BESIDE:
        if dropped in ends and all(other in ends for other in others):
            del ends[dropped]
    return set(ends.values())


def _special_tokens(keys: TypedKeys, tokens: list[str]) -> dict[str, str]:
    """The texts of special tokens by the names that templates use."""
    ids = {name: _token_id(keys, role, tokens) for name, role in _TEMPLATE_NAMES.items()}
    texts = {name: tokens[index] for name, index in ids.items() if index is not None}
    # Templates add these two to other texts without asking whether they are there.
    return {"bos_token": "", "eos_token": ""} | texts


def _repeated(backend: tokenizers.Tokenizer, tokens: list[str]) -> dict[int, int]:
    """Ids whose text a later token has too, which is the one that texts are encoded with."""
    ids = backend.get_vocab()
    return {index: ids[token] for index, token in enumerate(tokens) if ids[token] != index}


def _backend(keys: TypedKeys, name: str, tokens: list[str], ends: set[int]) -> tokenizers.Tokenizer:
    pre_tokenizer = _pre_tokenizer(name)
    if pre_tokenizer is None:
        known = ", ".join((*_GPT2_NAMES, *_SMOLLM_NAMES, *_LLAMA3_NAMES))
        raise keys.error("tokenizer.ggml.pre", f"one of {known}")
    merges = keys.strings("tokenizer.ggml.merges")
    kinds = "tokenizer.ggml.token_type"
    types = keys.integers(kinds, _TOKEN_TYPES) if kinds in keys else [1] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError(
            f"{keys.file}: {kinds}: expected {len(tokens)} entries, one per token, got {len(types)}"
        )
    try:
        model: Any = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[(first, second) for first, _, second in (m.partition(" ") for m in merges)],
            ignore_merges=name in _LLAMA3_NAMES,
        )
    # The package raises plain Exception where a merge names no token of the vocabulary.
    except Exception as error:
        raise ModelError(
            f"{keys.file}: tokenizer.ggml.merges: expected pairs of the vocabulary's tokens, got "
            f"the error {one_line(error)!r}"
        ) from error
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
