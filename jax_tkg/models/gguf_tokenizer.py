"""Reads the tokenizer and chat template of a GGUF file."""

from __future__ import annotations

import dataclasses

from jax_tkg.models import gguf_backend
from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.gguf_backend import Entries, Kind
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.tokenizer import Tokenizer
from jax_tkg.models.typed_keys import Range, TypedKeys

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
        "<｜end▁of▁sentence｜>",
    )
)
"""Texts of tokens that end generation in llama.cpp (`special_eog_ids`, llama-vocab.cpp)."""

_NO_END_BESIDE = (
    (("<|return|>", "<|call|>"), "<|end|>"),
    (("<|calls|>", "<|flush|>"), "<|end|>"),
    (("<|tool_response>",), "</s>"),
    # In Gemma's vocabulary it is HTML's tag for struck text.
    (("<end_of_turn>", "<eos>"), "</s>"),
)
"""If a vocabulary has all of the first texts, the second does not end generation.

All rules but the last are from llama.cpp.
"""

_TEMPLATE_NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
"""Special tokens: names in templates, and roles in the metadata, in GGUF's own spelling."""

_BACKENDS = {"gpt2": gguf_backend.byte_level, "llama": gguf_backend.sentence_piece}
"""Readers of vocabularies by `tokenizer.ggml.model`."""


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Builds the tokenizer from a GGUF file's metadata.

    Generation ends at the tokens that the metadata names and, as in llama.cpp, at tokens with
    certain texts: many files name only one of a model's several end tokens.

    Raises:
      ModelError: the vocabulary is neither byte-level nor SentencePiece BPE, the pre-tokenizer is
        unknown, or metadata is missing or damaged.
    """
    keys = file.metadata
    model = "tokenizer.ggml.model"
    if keys.string(model) not in _BACKENDS:
        raise keys.error(
            model, "'gpt2', byte-level BPE, or 'llama', SentencePiece BPE (others are unsupported)"
        )
    entries = Entries.read(keys)
    tokens = entries.texts
    by_text = _ends_by_text(tokens)
    named = {_token_id(keys, role, tokens) for role in ("eos", "eot", "eom")} - {None}
    stops = sorted(index for index in named | by_text if index is not None)
    if not stops:
        raise keys.error("tokenizer.ggml.eos_token_id", "the id of a token that ends a text")
    kinds = list(entries.kinds)
    for index in by_text:
        kinds[index] = Kind.CONTROL
    backend = _BACKENDS[keys.string(model)](dataclasses.replace(entries, kinds=kinds))
    template = "tokenizer.chat_template"
    return Tokenizer(
        backend.tokenizer,
        begin_tokens=_begin_tokens(keys, tokens, backend.adds_begin),
        stop_tokens=stops,
        chat_template=ChatTemplate(keys.string(template), _special_tokens(keys, tokens), file.path)
        if template in keys
        else None,
        spelling=backend.spelling,
        same_text=backend.same_text,
        origin=file.path,
    )


def _begin_tokens(keys: TypedKeys, tokens: list[str], default: bool) -> list[int]:
    """The token that every text begins with, if there is one."""
    begin = _token_id(keys, "bos", tokens)
    key = "tokenizer.ggml.add_bos_token"
    if begin is None and keys.boolean(key, default=False):
        raise keys.error("tokenizer.ggml.bos_token_id", f"the id of the token that {key} adds")
    return [begin] if begin is not None and keys.boolean(key, default=default) else []


def _token_id(keys: TypedKeys, role: str, tokens: list[str]) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    return keys.integer(key, Range(0, len(tokens) - 1)) if key in keys else None


def _ends_by_text(tokens: list[str]) -> set[int]:
    """Ids of tokens whose text marks the end of a text or turn, whatever the metadata says."""
    ends = {token: index for index, token in enumerate(tokens) if token in _END_TEXTS}
    for others, dropped in _NO_END_BESIDE:
        if dropped in ends and all(other in ends for other in others):
            del ends[dropped]
    return set(ends.values())


def _special_tokens(keys: TypedKeys, tokens: list[str]) -> dict[str, str]:
    """Texts of special tokens by their names in templates."""
    ids = {name: _token_id(keys, role, tokens) for name, role in _TEMPLATE_NAMES.items()}
    texts = {name: tokens[index] for name, index in ids.items() if index is not None}
    # Templates concatenate these two without testing whether they are defined.
    return {"bos_token": "", "eos_token": ""} | texts
