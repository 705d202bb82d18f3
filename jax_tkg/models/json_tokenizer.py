"""The tokenizer and chat template in a folder in the format of Hugging Face transformers."""

from __future__ import annotations

import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders

from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.safetensors import read_json
from jax_tkg.models.tokenizer import Tokenizer


def read_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """Reads `tokenizer.json` and, where they are there, the files that describe its use.

    Those are `tokenizer_config.json`, `chat_template.jinja` and `generation_config.json`.

    Raises:
      ModelError: the tokenizer is missing or damaged, or no byte-level BPE.
    """
    path = folder / "tokenizer.json"
    read_json(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # The package raises plain Exception for whatever is wrong with the file.
    except Exception as error:
        raise ModelError(f"{path}: not a readable tokenizer: {one_line(error)}") from error
    if not isinstance(backend.decoder, decoders.ByteLevel):
        raise ModelError(
            f"{path}: decoder: expected ByteLevel (byte-level BPE), got "
            f"{type(backend.decoder).__name__}"
        )
    described = _optional(folder / "tokenizer_config.json")
    names = {
        name: _content(described[name])
        for name in ("bos_token", "eos_token")
        if described.get(name)
    }
    ends = _optional(folder / "generation_config.json").get("eos_token_id")
    if ends is None:
        ends = backend.token_to_id(names.get("eos_token", ""))
    if ends is None:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: eos_token is missing")
    return Tokenizer(
        backend,
        begin_token=_begin_token(path, backend),
        stop_tokens=ends if isinstance(ends, list) else [ends],
        chat_template=_chat_template(folder, described, names),
    )


def _optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _content(token: Any) -> str:
    """The text of a special token, which is a string or a description of one."""
    return token["content"] if isinstance(token, dict) else token


def _begin_token(path: pathlib.Path, backend: tokenizers.Tokenizer) -> int | None:
    """What the tokenizer's post-processor puts before a text."""
    added = backend.encode("", add_special_tokens=True).ids
    if len(added) > 1:
        raise ModelError(f"{path}: post_processor: expected one token at most, got {len(added)}")
    return added[0] if added else None


def _chat_template(
    folder: pathlib.Path, described: dict[str, Any], names: dict[str, str]
) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return ChatTemplate(path.read_text(encoding="utf-8"), names, str(path))
    source = described.get("chat_template")
    if isinstance(source, list):
        # Several templates, by name.
        source = next((one["template"] for one in source if one["name"] == "default"), None)
    origin = str(folder / "tokenizer_config.json")
    return None if source is None else ChatTemplate(source, names, origin)
