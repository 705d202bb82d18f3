"""Reads the tokenizer and chat template of a folder in the format of Hugging Face transformers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import tokenizers

from jax_tkg.models import json_config, spelling
from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.config import LIMITS
from jax_tkg.models.errors import ModelError
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.tokenizer import Tokenizer, package_faults
from jax_tkg.models.typed_keys import Range, TypedKeys, is_unicode

_TOKENIZER, _DESCRIPTION = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS, _OLDER_TOKENS = "special_tokens_map.json", "added_tokens.json"
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MORE_TOKENS = (
    "additional_special_tokens",
    "extra_special_tokens",
    "model_specific_special_tokens",
)
"""Keys of further special tokens; each value is a list, or an object of tokens by name."""

_ADDED_TOKENS = "added_tokens_decoder"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""What an entry of `added_tokens_decoder` says of a token."""


def read_tokenizer(path: pathlib.Path) -> Tokenizer:
    """Reads `tokenizer.json` and, where present, the files that describe its use.

    These are `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`,
    `chat_template.jinja`, `additional_chat_templates`, `generation_config.json` and `config.json`.
    Where they disagree, transformers decides which one counts. Generation ends at the tokenizer's
    eos_token and at the ids that `generation_config.json` lists, or `config.json` if the former
    lists none.

    Args:
      path: the folder.

    Raises:
      ModelError: the tokenizer is missing or damaged, or neither byte-level nor SentencePiece BPE.
    """
    folder = ModelFolder(path)
    content = folder.json(_TOKENIZER)
    # No vocabulary of these spellings has one. Where merges do not fit it, the package may end the
    # whole process: it cuts characters in two.
    content.object("model").check_neutral("continuing_subword_prefix", "")
    backend = _backend(folder)
    spelled = spelling.of_decoder(content.raw("decoder"))
    if spelled is None:
        raise content.error("decoder", spelling.DECODERS)
    described = folder.optional_json(_DESCRIPTION)
    special_tokens = _special_tokens(described)
    mapped = _special_tokens(folder.optional_json(_SPECIAL_TOKENS))
    if _ADDED_TOKENS in described:
        special_tokens = mapped | special_tokens
        _add_described(backend, described.object(_ADDED_TOKENS))
    else:
        # The other two files are from before this key, and transformers prefers them without it.
        special_tokens |= mapped
        _add_older(backend, folder.optional_json(_OLDER_TOKENS))
    _mark_special(backend, special_tokens)
    # Whether special tokens that a text spells out are split like any other text.
    backend.encode_special_tokens = described.boolean("split_special_tokens", default=False)
    return Tokenizer(
        backend,
        begin_tokens=_begin_tokens(backend, content.file),
        stop_tokens=_stop_tokens(folder, backend, special_tokens.get("eos_token")),
        chat_template=_chat_template(folder, described, special_tokens),
        spelling=spelled,
        origin=content.file,
    )


def _backend(folder: ModelFolder) -> tokenizers.Tokenizer:
    text = folder.text(_TOKENIZER)
    with package_faults(str(folder.path / _TOKENIZER), "a tokenizer of the tokenizers package"):
        backend = tokenizers.Tokenizer.from_str(text)
    # The file may hold the settings of the model's training, which silently cut prompts.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(keys: TypedKeys) -> dict[str, str | list[str]]:
    """Texts of special tokens by their names in templates, such as "bos_token"."""
    found: dict[str, str | list[str]] = {}
    for key in keys:
        # Flags such as add_bos_token have the same ending, and numbers such as num_image_token.
        is_token = key in _NAMED_TOKENS or isinstance(keys.raw(key), str | dict)
        if key.endswith("_token") and is_token and not isinstance(keys.raw(key), bool):
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
    _check_unicode(keys, key, text)
    return text


def _check_unicode(keys: TypedKeys, key: str, text: str) -> None:
    if not is_unicode(text):
        raise keys.error(key, "a text without half a surrogate pair")


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


def _add_described(backend: tokenizers.Tokenizer, decoder: TypedKeys) -> None:
    """Adds the tokens of `added_tokens_decoder`.

    What it says of a token replaces what `tokenizer.json` says, but a special token stays one.
    """
    whole = backend.get_added_tokens_decoder()
    new = _NewTokens(backend)
    # Ids in ascending order, which the file's need not be: a new token's id is the next one.
    for index in sorted(decoder, key=lambda index: (len(index), index)):
        text = _token_text(decoder, index, decoder.raw(index))
        known = backend.token_to_id(text)
        if known not in whole:
            new.check_id(decoder, index, text, index)
        entry = decoder.object(index)
        token = tokenizers.AddedToken(
            text, **{flag: entry.boolean(flag) for flag in _FLAGS if flag in entry}
        )
        if known in whole:
            token.special = token.special or whole[known].special
            if all(getattr(token, flag) == getattr(whole[known], flag) for flag in _FLAGS):
                continue
        new.tokens[text] = token
    new.add()


def _add_older(backend: tokenizers.Tokenizer, tokens: TypedKeys) -> None:
    """Adds the tokens of `added_tokens.json`, ids by text, that `tokenizer.json` does not have."""
    limits = Range(0, LIMITS["vocabulary_size"].maximum)
    ids = {text: tokens.integer(text, limits) for text in tokens}
    whole = backend.get_added_tokens_decoder()
    new = _NewTokens(backend)
    for text in sorted(ids, key=ids.__getitem__):
        _check_unicode(tokens, text, text)
        if backend.token_to_id(text) not in whole:
            new.check_id(tokens, text, text, str(ids[text]))
            new.tokens[text] = tokenizers.AddedToken(text)
    new.add()


class _NewTokens:
    """Tokens to add, which is done at once: each call of the package goes through all tokens.

    Args:
      backend: what they are added to.

    Attributes:
      tokens: by text, in the order of the ids that they get.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self.tokens: dict[str, tokenizers.AddedToken] = {}
        self._backend = backend
        self._next = backend.get_vocab_size()

    def check_id(self, keys: TypedKeys, key: str, text: str, index: str) -> None:
        """Refuses an id that is not the text's in the vocabulary, or the next one."""
        known = self._backend.token_to_id(text)
        expected = self._next if known is None else known
        if index != str(expected) or text in self.tokens or not text:
            raise keys.error(key, f"the id of {text!r}, {expected}")
        self._next += known is None

    def add(self) -> None:
        """Adds them."""
        self._backend.add_tokens(list(self.tokens.values()))


def _mark_special(
    backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str | list[str]]
) -> None:
    """Marks the special tokens that only the other files declare."""
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    marked = []
    for named in special_tokens.values():
        for text in [named] if isinstance(named, str) else named:
            token = added.get(text, tokenizers.AddedToken(text, normalized=False))
            # A token outside the vocabulary has no embedding.
            if not token.special and backend.token_to_id(text) is not None:
                token.special = True
                marked.append(token)
    backend.add_special_tokens(marked)


def _begin_tokens(backend: tokenizers.Tokenizer, file: str) -> list[int]:
    """The tokens that the post-processor puts before a text.

    As in transformers, `add_bos_token` of `tokenizer_config.json` has no effect if there is a
    `tokenizer.json`.
    """
    with package_faults(file, "the tokens of a text"):
        whole, text = (backend.encode("a", add_special_tokens=added).ids for added in (True, False))
    ends = (end for end in range(len(whole)) if whole[end : end + len(text)] == text)
    return whole[: next(ends, 0)]


def _chat_template(
    folder: ModelFolder, described: TypedKeys, special_tokens: Mapping[str, str | list[str]]
) -> ChatTemplate | None:
    """Reads the template from its own files, or from `tokenizer_config.json` if there are none."""
    sources: dict[str, str] = {}
    if folder.has(_TEMPLATE):
        sources["default"] = folder.text(_TEMPLATE)
    for path in sorted((folder.path / _MORE_TEMPLATES).glob("*.jinja")):
        sources[path.stem] = folder.text(f"{_MORE_TEMPLATES}/{path.name}")
    origin = folder.path / (_TEMPLATE if sources else _DESCRIPTION)
    sources = sources or _described_templates(described)
    return ChatTemplate(sources, special_tokens, str(origin)) if sources else None


def _described_templates(described: TypedKeys) -> dict[str, str]:
    """Templates of `tokenizer_config.json` by name; a single one is named "default"."""
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
