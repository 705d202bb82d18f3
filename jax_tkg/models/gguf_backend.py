"""Builds a tokenizer of the `tokenizers` package from the vocabulary of a GGUF file."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jax_tkg.models import pre_tokenization
from jax_tkg.models.errors import ModelError
from jax_tkg.models.spelling import (
    BYTE_LEVEL,
    SENTENCE_PIECE,
    SENTENCE_PIECE_WITH_PREFIX,
    SPACE,
    Spelling,
)
from jax_tkg.models.tokenizer import package_faults
from jax_tkg.models.typed_keys import Range, TypedKeys

_KINDS = Range(0, 6)
_SCORES = Range(-3.4e38, 3.4e38)
_MAX_PIECE = 256
"""Most characters of a SentencePiece entry: splitting one takes time that grows as their square."""


class Kind(enum.IntEnum):
    """`tokenizer.ggml.token_type`, from the GGUF specification."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Entries:
    """The tokens of a file, by id.

    Attributes:
      keys: the file's metadata.
      texts: the texts of the tokens.
      kinds: the `Kind` of each token.
    """

    keys: TypedKeys
    texts: list[str]
    kinds: list[int]

    @classmethod
    def read(cls, keys: TypedKeys) -> Entries:
        """Reads the tokens from the metadata.

        Raises:
          ModelError: the tokens are missing, or their kinds are unknown or not one per token.
        """
        texts = keys.strings("tokenizer.ggml.tokens")
        key = "tokenizer.ggml.token_type"
        kinds = keys.integers(key, _KINDS) if key in keys else [int(Kind.NORMAL)] * len(texts)
        if len(kinds) != len(texts):
            raise ModelError(
                f"{keys.file}: {key}: expected {len(texts)} entries, one per token, got "
                f"{len(kinds)}"
            )
        return cls(keys, texts, kinds)

    def ids(self, *kinds: Kind) -> list[int]:
        """Ids of the tokens that are of one of the kinds."""
        return [index for index, kind in enumerate(self.kinds) if kind in kinds]


@dataclasses.dataclass(frozen=True)
class Backend:
    """A tokenizer of the `tokenizers` package and the further arguments of `Tokenizer`.

    Attributes:
      tokenizer: the tokenizer.
      spelling: how the vocabulary's entries spell bytes.
      adds_begin: whether texts begin with the begin token if the file does not say.
      same_text: ids whose text a later token repeats, with that token's id. Encoding uses the later
        token.
    """

    tokenizer: tokenizers.Tokenizer
    spelling: Spelling
    adds_begin: bool
    same_text: dict[int, int]


def byte_level(entries: Entries) -> Backend:
    """Builds a byte-level BPE from a file's merges and the name of its pre-tokenizer.

    Raises:
      ModelError: the pre-tokenizer is unknown, or the merges are missing or damaged.
    """
    keys = entries.keys
    pre = pre_tokenization.BY_NAME.get(keys.string("tokenizer.ggml.pre"))
    if pre is None:
        known = ", ".join(pre_tokenization.BY_NAME)
        raise keys.error("tokenizer.ggml.pre", f"one of {known}")
    vocabulary = _vocabulary(entries, entries.texts)
    merges = keys.strings("tokenizer.ggml.merges")
    # The package refuses a merge that names a token outside the vocabulary.
    where = f"{keys.file}: tokenizer.ggml.merges"
    with package_faults(where, "pairs of the vocabulary's tokens"):
        model: Any = models.BPE(
            vocab=vocabulary,
            merges=[(first, second) for first, _, second in (m.partition(" ") for m in merges)],
            ignore_merges=pre.whole_words,
        )
    tokenizer = tokenizers.Tokenizer(model)
    if (normalizer := pre.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, entries, entries.texts)
    same_text = _repeated(vocabulary, entries, entries.texts)
    return Backend(tokenizer, BYTE_LEVEL, pre.adds_begin, same_text)


def sentence_piece(entries: Entries) -> Backend:
    """Builds a SentencePiece BPE, deriving its merges from the scores of the tokens.

    Entries write a space as U+2581. With `add_space_prefix`, the default, a space is put before
    the text and after each special token, as in Llama 2. If `[INST]` is a special token (Mistral 7B
    0.3 and later), the space is put before the text only. Gemma adds no space, and has tokens for
    runs of spaces.

    Raises:
      ModelError: the scores are missing, not finite or not one per token; the vocabulary lacks a
        token for some byte or has an overlong token; or the file asks for an unsupported
        normalization.
    """
    keys = entries.keys
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        keys.check_neutral(f"tokenizer.ggml.{key}", False)
    texts = [
        SPACE * len(text) if kind == Kind.USER_DEFINED and _is_spaces(text) else text
        for text, kind in zip(entries.texts, entries.kinds, strict=True)
    ]
    vocabulary = _vocabulary(entries, texts)
    _check_bytes(keys, vocabulary)
    unknown = entries.ids(Kind.UNKNOWN)
    model: Any = models.BPE(
        vocab=vocabulary,
        merges=_merges(entries, texts),
        unk_token=texts[unknown[0]] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
    replaced = normalizers.Replace(" ", SPACE)
    decoder = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    prefix = keys.boolean("tokenizer.ggml.add_space_prefix", default=True)
    if not prefix:
        tokenizer.normalizer = replaced
    elif any(texts[index] == "[INST]" for index in entries.ids(Kind.CONTROL)):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replaced])
    if prefix:
        decoder.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoder)
    _add_whole_tokens(tokenizer, entries, texts)
    spelling = SENTENCE_PIECE_WITH_PREFIX if prefix else SENTENCE_PIECE
    return Backend(tokenizer, spelling, True, _repeated(vocabulary, entries, texts))


def _is_spaces(text: str) -> bool:
    return bool(text) and not text.strip(" ")


def _vocabulary(entries: Entries, texts: Sequence[str]) -> dict[str, int]:
    """Ids by text, without unused tokens, which only pad the model's vocabulary."""
    used = zip(texts, entries.kinds, strict=True)
    return {text: index for index, (text, kind) in enumerate(used) if kind != Kind.UNUSED}


def _repeated(vocabulary: dict[str, int], entries: Entries, texts: Sequence[str]) -> dict[int, int]:
    used = zip(texts, entries.kinds, strict=True)
    return {
        index: vocabulary[text]
        for index, (text, kind) in enumerate(used)
        if kind != Kind.UNUSED and vocabulary[text] != index
    }


def _check_bytes(keys: TypedKeys, vocabulary: dict[str, int]) -> None:
    """Refuses a vocabulary that would silently drop a character."""
    for byte in range(256):
        if f"<0x{byte:02X}>" not in vocabulary and (byte >= 128 or chr(byte) not in vocabulary):
            raise ModelError(
                f"{keys.file}: tokenizer.ggml.tokens: expected a token for every byte, got none "
                f"for <0x{byte:02X}>"
            )


def _merges(entries: Entries, texts: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of entries that join into an entry, best joined entry first.

    SentencePiece joins the neighbors whose joined entry has the highest score. User-defined entries
    rank above all others there; converters write arbitrary scores for them.
    """
    keys = entries.keys
    scores = keys.numbers("tokenizer.ggml.scores", _SCORES, len(texts))
    ranks: dict[str, tuple[bool, float]] = {}
    for text, kind, score in zip(texts, entries.kinds, scores, strict=True):
        spaces = kind == Kind.USER_DEFINED and not text.strip(SPACE)
        if spaces or kind in (Kind.NORMAL, Kind.UNDEFINED):
            ranks[text] = (not spaces, 0.0 if spaces else -score)
        if len(text) > _MAX_PIECE:
            raise ModelError(
                f"{keys.file}: tokenizer.ggml.tokens: expected tokens of at most {_MAX_PIECE} "
                f"characters, got one of {len(text)}"
            )
    return [
        (text[:cut], text[cut:])
        for text in sorted(ranks, key=ranks.__getitem__)
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in ranks and text[cut:] in ranks
    ]


def _add_whole_tokens(
    tokenizer: tokenizers.Tokenizer, entries: Entries, texts: Sequence[str]
) -> None:
    """Adds the tokens that are matched whole, before the text is split."""
    special = [_added(entries, texts[i], True) for i in entries.ids(Kind.CONTROL, Kind.UNKNOWN)]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([_added(entries, texts[i], False) for i in entries.ids(Kind.USER_DEFINED)])


_NO_STRIPPING_IN_PHI3 = ("<unk>", "<s>", "<|endoftext|>")


def _added(entries: Entries, text: str, special: bool) -> tokenizers.AddedToken:
    """A token that is matched whole.

    In Phi-3's `tokenizer.json` most special tokens absorb the white space after them, in Phi-4's
    also the white space before them. GGUF files do not record this.
    """
    keys = entries.keys
    left = right = False
    if special and keys.raw("general.architecture") == "phi3":
        if keys.raw("tokenizer.ggml.model") == "llama":
            right = text not in _NO_STRIPPING_IN_PHI3
        elif keys.raw("tokenizer.ggml.pre") == "dbrx":
            left = right = True
    return tokenizers.AddedToken(text, lstrip=left, rstrip=right, normalized=False, special=special)
