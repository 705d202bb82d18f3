"""The header of a GGUF file: its metadata, and where each tensor lies.

This module replaces the reader of the `gguf` package, which makes several NumPy arrays for every
element of a metadata array (half a minute for a megabyte) and trusts the offsets, counts and
lengths that it reads. Types and block sizes still come from that package. Everything else is
checked against the file's size before memory is allocated.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from typing import Any

import gguf
import numpy as np

from jax_tkg.models.errors import ModelError
from jax_tkg.models.typed_keys import Range, TypedKeys

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ENTRIES = 1 << 17
"""Most metadata keys, and most tensors: far more than any model has, read within seconds."""
_MAX_STRINGS = 1 << 22
"""Most strings in all arrays together; the largest vocabularies have under a million entries."""
_MAX_NAME = 1 << 16
"""Most bytes of a key or of a tensor's name; the format's own limits are below."""
_DIMENSIONS = Range(1, 4)
_ALIGNMENT = Range(1, 1 << 20)

_SCALARS: dict[int, np.dtype] = {
    gguf.GGUFValueType.UINT8: np.dtype("<u1"),
    gguf.GGUFValueType.INT8: np.dtype("<i1"),
    gguf.GGUFValueType.UINT16: np.dtype("<u2"),
    gguf.GGUFValueType.INT16: np.dtype("<i2"),
    gguf.GGUFValueType.UINT32: np.dtype("<u4"),
    gguf.GGUFValueType.INT32: np.dtype("<i4"),
    gguf.GGUFValueType.FLOAT32: np.dtype("<f4"),
    gguf.GGUFValueType.UINT64: np.dtype("<u8"),
    gguf.GGUFValueType.INT64: np.dtype("<i8"),
    gguf.GGUFValueType.FLOAT64: np.dtype("<f8"),
}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
      shape: rows first, which is the reverse of the file's order.
      type: how its elements are stored.
      start: its first byte, counted from the start of the file.
      size: bytes.
    """

    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    start: int
    size: int

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.start + self.size


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      metadata: the values by key; an array of numbers is a NumPy array, one of strings a list.
      tensors: by name, in the file's order.
    """

    metadata: TypedKeys
    tensors: dict[str, TensorInfo]


def read_header(path: str, data: np.ndarray) -> Header:
    """Reads the header of a GGUF file.

    Args:
      path: the file's path, for messages.
      data: [bytes] uint8, the whole file.

    Raises:
      ModelError: it is no little-endian GGUF file of a known version, is damaged or truncated, or
        its tensors overlap.
    """
    cursor = _Cursor(path, data)
    if (magic := bytes(data[:4])) != _MAGIC:
        raise ModelError(
            f"{path}: expected a GGUF file, which begins with {_MAGIC!r}, got {magic!r}"
        )
    cursor.take(4, "the header")
    _check_version(path, cursor.unpack("<I", "the header"))
    tensor_count = cursor.count("the number of tensors", _MAX_ENTRIES)
    key_count = cursor.count("the number of metadata keys", _MAX_ENTRIES)
    values: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string("a metadata key", _MAX_NAME)
        if key in values:
            raise ModelError(f"{path}: {key}: expected each metadata key once, got it twice")
        values[key] = cursor.value(key)
    metadata = TypedKeys(path, values)
    alignment = metadata.integer("general.alignment", _ALIGNMENT, default=_DEFAULT_ALIGNMENT)
    if alignment & (alignment - 1):
        raise metadata.error("general.alignment", "a power of two")
    infos = [_TensorEntry.read(cursor) for _ in range(tensor_count)]
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise ModelError(f"{path}: tensor {info.name}: expected it once, got it twice")
        tensors[info.name] = info.place(path, start, alignment)
    _check_places(path, tensors, len(data))
    return Header(metadata, tensors)


def _check_version(path: str, version: int) -> None:
    if version in _VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise ModelError(
            f"{path}: expected a file in little-endian byte order, got one in big-endian order"
        )
    raise ModelError(f"{path}: GGUF version: expected 2 or 3, got {version}")


@dataclasses.dataclass(frozen=True)
class _TensorEntry:
    """One tensor as the header describes it: its offset counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @classmethod
    def read(cls, cursor: _Cursor) -> _TensorEntry:
        name = cursor.string("a tensor's name", _MAX_NAME)
        what = f"tensor {name}"
        rank = cursor.unpack("<I", what)
        if rank not in _DIMENSIONS:
            raise ModelError(
                f"{cursor.path}: {what}: expected {_DIMENSIONS} dimensions, got {rank}"
            )
        sizes = [cursor.unpack("<Q", what) for _ in range(rank)]
        if not all(sizes):
            raise ModelError(f"{cursor.path}: {what}: expected positive sizes, got {sizes[::-1]}")
        kind, offset = cursor.unpack("<I", what), cursor.unpack("<Q", what)
        return cls(name, tuple(reversed(sizes)), kind, offset)

    def place(self, path: str, data_start: int, alignment: int) -> TensorInfo:
        where = f"{path}: tensor {self.name}"
        try:
            kind = gguf.GGMLQuantizationType(self.type)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ModelError(f"{where}: expected a known type, got number {self.type}") from None
        if self.shape[-1] % block:
            raise ModelError(
                f"{where}: expected rows of a multiple of {block} elements, as type {kind.name} "
                f"has, got {self.shape[-1]}"
            )
        if self.offset % alignment:
            raise ModelError(
                f"{where}: expected an offset that is a multiple of {alignment}, got {self.offset}"
            )
        elements = 1
        for size in self.shape:
            elements *= size
        size = elements // block * block_bytes
        return TensorInfo(self.shape, kind, data_start + self.offset, size)


def _check_places(path: str, tensors: dict[str, TensorInfo], file_size: int) -> None:
    """Checks that the tensors lie in the file and apart from each other."""
    for name, info in tensors.items():
        if info.end > file_size:
            raise ModelError(
                f"{path}: tensor {name}: expected a file of at least {info.end} bytes, where it "
                f"ends, got {file_size}: the file is truncated"
            )
    ordered = sorted(tensors.items(), key=lambda item: item[1].start)
    for (before, lower), (name, upper) in itertools.pairwise(ordered):
        if upper.start < lower.end:
            raise ModelError(
                f"{path}: tensor {name}: expected it to begin at byte {lower.end} or later, where "
                f"tensor {before} ends, got {upper.start}"
            )


class _Cursor:
    """Reads a file from front to back; nothing is read, and no memory taken, beyond its end."""

    def __init__(self, path: str, data: np.ndarray):
        self.path = path
        self.position = 0
        self._view = data.data
        self._strings_left = _MAX_STRINGS

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes; messages call them `what`."""
        end = self.position + size
        if end > len(self._view):
            raise ModelError(
                f"{self.path}: {what}: expected a file of at least {end} bytes, where it ends, got "
                f"{len(self._view)}: the file is truncated or damaged"
            )
        taken = self._view[self.position : end]
        self.position = end
        return taken

    def unpack(self, form: str, what: str) -> Any:
        """One number of the `struct` module's format."""
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, what: str, most: int) -> int:
        """A number of things that follow."""
        count = self.unpack("<Q", what)
        if count > most:
            raise ModelError(f"{self.path}: {what}: expected at most {most}, got {count}")
        return count

    def string(self, what: str, most: int | None = None) -> str:
        """A string, which must be UTF-8."""
        length = self.unpack("<Q", what)
        if most is not None and length > most:
            raise ModelError(f"{self.path}: {what}: expected at most {most} bytes, got {length}")
        content = self.take(length, what)
        try:
            return str(content, "utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{self.path}: {what}: expected text in UTF-8, got byte "
                f"{content[error.start]:#04x} at {error.start}"
            ) from None

    def value(self, key: str) -> Any:
        """A metadata value with its type before it."""
        kind = self.unpack("<I", key)
        if kind == gguf.GGUFValueType.ARRAY:
            return self._array(key)
        if kind == gguf.GGUFValueType.STRING:
            return self.string(key)
        return self._numbers(key, kind, 1).tolist()[0]

    def _array(self, key: str) -> Any:
        kind, count = self.unpack("<I", key), self.unpack("<Q", key)
        if kind != gguf.GGUFValueType.STRING:
            return self._numbers(key, kind, count)
        if count > self._strings_left:
            raise ModelError(
                f"{self.path}: {key}: expected at most {_MAX_STRINGS} strings in the file's arrays,"
                f" got an array of {count}"
            )
        self._strings_left -= count
        return [self.string(key) for _ in range(count)]

    def _numbers(self, key: str, kind: int, count: int) -> np.ndarray:
        if kind == gguf.GGUFValueType.BOOL:
            stored = np.frombuffer(self.take(count, key), np.uint8)
            if np.max(stored, initial=0) > 1:
                raise ModelError(
                    f"{self.path}: {key}: expected booleans stored as 0 or 1, got {np.max(stored)}"
                )
            return stored.astype(bool)
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise ModelError(
                f"{self.path}: {key}: expected a known type of numbers or strings, got number "
                f"{kind}"
            )
        return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
