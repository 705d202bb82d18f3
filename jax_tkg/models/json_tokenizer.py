"""The tokenizer and chat template in a folder in the format of Hugging Face transformers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import tokenizers
from tokenizers import decoders

from jax_tkg.models import json_config
from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.tokenizer import Tokenizer
from jax_tkg.models.typed_keys import TypedKeys

_TOKENIZER, _DESCRIPTION = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_MORE_TOKENS = (
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
)
"""Keys of further special tokens: lists, or objects that give them names."""


def read_tokenizer(path: pathlib.Path) -> Tokenizer:
    """Reads `tokenizer.json` and the files beside it that describe its use, where they are there.

    Those are `tokenizer_config.json` and `special_tokens_map.json`, `chat_template.jinja` and
    `additional_chat_templates`, `generation_config.json` and `config.json`. Generation ends at the
    tokenizer's eos_token and at the ids that `generation_config.json`, or else `config.json`,
    lists.

    Args:
      path: the folder.

    Raises:
      ModelError: the tokenizer is missing or damaged, or no byte-level BPE.
    """
    folder = ModelFolder(path)
    backend = _backend(folder)
    described = folder.optional_json(_DESCRIPTION)
    special_tokens = _special_tokens(folder.optional_json(_SPECIAL_TOKENS))
    special_tokens |= _special_tokens(described)
    return Tokenizer(
        backend,
        begin_token=_begin_token(folder, backend),
        stop_tokens=_stop_tokens(folder, backend, special_tokens.get("eos_token")),
        chat_template=_chat_template(folder, described, special_tokens),
    )


def _backend(folder: ModelFolder) -> tokenizers.Tokenizer:
    folder.json(_TOKENIZER)
    path = folder.file(_TOKENIZER)
    try:
        backend = tokenizers.Tokenizer.from_str(folder.text(_TOKENIZER))
    # The package raises plain Exception for whatever is wrong with the file.
    except Exception as error:
        raise ModelError(
            f"{path}: expected a tokenizer of the tokenizers package, got the error "
            f"{one_line(error)!r}"
        ) from error
    if not isinstance(backend.decoder, decoders.ByteLevel):
        raise ModelError(
            f"{path}: decoder: expected ByteLevel, of byte-level BPE (SentencePiece and other "
            f"vocabularies are not supported), got {type(backend.decoder).__name__}"
        )
    # The file may hold those of the model's training, which cut prompts without a word.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(keys: TypedKeys) -> dict[str, str | list[str]]:
    """The texts of special tokens by the names that templates use, such as "bos_token"."""
    found: dict[str, str | list[str]] = {}
    for key in keys:
        # Flags such as add_bos_token end in the same way.
        if key.endswith("_token") and not isinstance(keys.raw(key), bool):
            found[key] = _token_text(keys, key, keys.raw(key))
    for key in _MORE_TOKENS:
        tokens = keys.raw(key)
        if isinstance(tokens, list):
            found[key] = [_token_text(keys, key, token) for token in tokens]
        else:
            named = keys.object(key)
            found.update((name, _token_text(named, name, named.raw(name))) for name in named)
    return found


def _token_text(keys: TypedKeys, key: str, token: object) -> str:
    """The text of a special token, which is a string or a description of one."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise keys.error(key, "a string, or an object with a string as its content")
    return text


def _stop_tokens(
    folder: ModelFolder, backend: tokenizers.Tokenizer, eos_token: str | list[str] | None
) -> list[int]:
    stops = set(json_config.stop_tokens(folder))
    if isinstance(eos_token, str):
        end = backend.token_to_id(eos_token)
        if end is None and not stops:
            raise ModelError(
                f"{folder.path / _DESCRIPTION}: eos_token: expected a token of {_TOKENIZER}, got "
                f"{eos_token!r}"
            )
        stops.update(() if end is None else (end,))
    if not stops:
        raise ModelError(
            f"{folder.path / _DESCRIPTION}: eos_token: expected the token that ends a text, but "
            f"the key is missing"
        )
    return sorted(stops)


def _begin_token(folder: ModelFolder, backend: tokenizers.Tokenizer) -> int | None:
    """The token that the tokenizer's post-processor puts before a text."""
    added = backend.encode("", add_special_tokens=True).ids
    if len(added) > 1:
        raise ModelError(
            f"{folder.path / _TOKENIZER}: post_processor: expected one token at most, got "
            f"{len(added)}"
        )
    return added[0] if added else None


def _chat_template(
    folder: ModelFolder, described: TypedKeys, special_tokens: Mapping[str, str | list[str]]
) -> ChatTemplate | None:
    """The template in files of its own, or else in the tokenizer's description."""
    sources: dict[str, str] = {}
    if folder.has(_TEMPLATE):
        sources["default"] = folder.text(_TEMPLATE)
    for path in sorted((folder.path / _MORE_TEMPLATES).glob("*.jinja")):
        sources[path.stem] = folder.text(f"{_MORE_TEMPLATES}/{path.name}")
    origin = folder.path / (_TEMPLATE if sources else _DESCRIPTION)
    sources = sources or _described_templates(described)
    return ChatTemplate(sources, special_tokens, str(origin)) if sources else None


def _described_templates(described: TypedKeys) -> dict[str, str]:
    """Templates by name; a single one is the "default"."""
    key = "chat_template"
    value = described.raw(key)
    named = value if isinstance(value, list) else [{"name": "default", "template": value}]
    sources: dict[str, str] = {}
    for entry in [] if value is None else named:
        if not isinstance(entry, dict):
            raise described.error(key, "a string or a list of objects")
        name, source = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(source, str):
            raise described.error(key, "a string, or a list of objects with name and template")
        sources[name] = source
    return sources
