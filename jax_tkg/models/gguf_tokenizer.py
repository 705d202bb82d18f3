"""The tokenizer and chat template inside a GGUF file."""

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
    # HTML's tag for struck text, in Gemma's vocabulary.
    (("<end_of_turn>", "<eos>"), "</s>"),
)
"""Where a vocabulary has all of the first, the other is no end; all but the last from llama.cpp."""

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

_BACKENDS = {"gpt2": gguf_backend.byte_level, "llama": gguf_backend.sentence_piece}
"""How vocabularies are read, by `tokenizer.ggml.model`."""


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Builds the tokenizer from a GGUF file's metadata.

    Generation ends at the tokens that the metadata names and at those whose text says so, as
    llama.cpp has it: many files name one of the model's several end tokens only.

    Raises:
      ModelError: another vocabulary than byte-level or SentencePiece BPE, an unknown pre-tokenizer,
        or missing or damaged metadata.
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
    )


def _begin_tokens(keys: TypedKeys, tokens: list[str], default: bool) -> list[int]:
    """The token that texts begin with, where they do."""
    begin = _token_id(keys, "bos", tokens)
    key = "tokenizer.ggml.add_bos_token"
    if begin is None and keys.boolean(key, default=False):
        raise keys.error("tokenizer.ggml.bos_token_id", f"the id of the token that {key} adds")
    return [begin] if begin is not None and keys.boolean(key, default=default) else []


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
