"""How the entries of a vocabulary spell the bytes of text.

Byte-level vocabularies write each byte as one character. SentencePiece vocabularies write text
itself, with U+2581 for a space, and have an entry such as `<0x0A>` for each byte, which serves
characters that no other entry covers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True)
class Spelling:
    """Converts entries to bytes.

    Attributes:
      bytes_of: the bytes of an entry.
      added_bytes_of: the bytes of an added token, which is matched whole.
      drops_space: whether decoding drops a space at the start of a text, because encoding adds one.
    """

    bytes_of: Callable[[str], bytes]
    added_bytes_of: Callable[[str], bytes]
    drops_space: bool = False


def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Bytes that are printable in Latin-1 stand for themselves; the others are numbered from U+0100
    (Radford et al. 2019, the encoder published with GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update((chr(0x100 + index), byte) for index, byte in enumerate(others))
    return characters


_BYTE_OF_CHARACTER = _alphabet()


def _byte_level_bytes(entry: str) -> bytes:
    """Bytes of an entry; one outside the byte alphabet is text itself."""
    if all(character in _BYTE_OF_CHARACTER for character in entry):
        return bytes(_BYTE_OF_CHARACTER[character] for character in entry)
    return entry.encode()


def _sentence_piece_bytes(entry: str) -> bytes:
    if match := _BYTE.fullmatch(entry):
        return bytes([int(match[1], 16)])
    return entry.replace(SPACE, " ").encode()


BYTE_LEVEL = Spelling(_byte_level_bytes, str.encode)
SENTENCE_PIECE = Spelling(_sentence_piece_bytes, _sentence_piece_bytes)
SENTENCE_PIECE_WITH_PREFIX = dataclasses.replace(SENTENCE_PIECE, drops_space=True)

_PIECES: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_FIRST_SPACE: dict[str, Any] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

DECODERS = (
    "ByteLevel, or the sequence Replace(U+2581 by a space), ByteFallback, Fuse, with "
    "Strip(one space at the start) after it or not"
)
"""The decoders that `of_decoder` knows, for messages."""


def of_decoder(decoder: object) -> Spelling | None:
    """The spelling that a decoder of `tokenizer.json` decodes, or None if it is unknown."""
    if not isinstance(decoder, dict):
        return None
    if decoder.get("type") == "ByteLevel":
        return BYTE_LEVEL
    if decoder.get("type") == "Sequence":
        steps = decoder.get("decoders")
        if steps == _PIECES:
            return SENTENCE_PIECE
        if steps == [*_PIECES, _FIRST_SPACE]:
            return SENTENCE_PIECE_WITH_PREFIX
    return None
