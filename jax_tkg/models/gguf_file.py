"""GGUF files: metadata and tensors of a model in one file or in several parts."""

from __future__ import annotations

import os
import pathlib
import re

import gguf
import numpy as np

from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.gguf_header import Header, TensorInfo, read_header
from jax_tkg.models.typed_keys import Range, TypedKeys

_PART_NAME = re.compile(r"(?P<prefix>.+)-\d{5}-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""How gguf-split and llama.cpp name the parts of a model, which are numbered from 1."""
_PARTS = Range(0, 99_999)
_TENSORS = Range(0, 2**31 - 1)


class _Part:
    """One file: its header, and its bytes mapped into memory."""

    def __init__(self, path: str):
        self.path = path
        if not os.path.isfile(path):
            got = "something else" if os.path.exists(path) else "no such file"
            raise ModelError(f"{path}: expected a GGUF file, got {got}")
        try:
            # An empty file cannot be mapped.
            empty = not os.path.getsize(path)
            self.data = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: expected a readable GGUF file, got {one_line(error)}"
            ) from error
        self.header: Header = read_header(path, self.data)

    def elements(self, info: TensorInfo) -> np.ndarray:
        """A tensor as the gguf package wants it: floats, or quantized blocks as bytes by rows."""
        stored = self.data[info.start : info.end]
        if info.type == gguf.GGMLQuantizationType.F32:
            return stored.view("<f4").reshape(info.shape)
        if info.type == gguf.GGMLQuantizationType.F16:
            return stored.view("<f2").reshape(info.shape)
        return stored.reshape(gguf.quant_shape_to_byte_shape(info.shape, info.type))


class GgufFile:
    """A model in GGUF files: metadata and tensors, every access checked.

    Attributes:
      path: where the file is; of several parts, the one that was named.
      metadata: the metadata's keys; of several parts, the first one's.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens a file and reads its header.

        Args:
          path: the file, or any part of a model in several: NAME-00001-of-00003.gguf, with the
            other parts beside it.

        Raises:
          ModelError: it is absent, no GGUF file, damaged, truncated, or parts are missing or do not
            belong together.
        """
        self.path = os.fspath(path)
        named = _Part(self.path)
        parts = [named]
        count = named.header.metadata.integer("split.count", _PARTS, default=1)
        if count > 1:
            parts = _all_parts(named, count)
        self.metadata: TypedKeys = parts[0].header.metadata
        self._tensors: dict[str, tuple[_Part, TensorInfo]] = {}
        for part in parts:
            for name, info in part.header.tensors.items():
                if name in self._tensors:
                    raise ModelError(
                        f"{part.path}: tensor {name}: expected it in one part, got it in "
                        f"{self._tensors[name][0].path} too"
                    )
                self._tensors[name] = (part, info)
        stated = self.metadata.integer("split.tensors.count", _TENSORS, default=len(self._tensors))
        if count > 1 and stated != len(self._tensors):
            raise self.metadata.error(
                "split.tensors.count", f"{len(self._tensors)}, the number of tensors in all parts"
            )

    @property
    def tensor_names(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._tensors)

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor, dequantized to float32.

        Args:
          name: its name in the file.
          shape: the shape it must have, rows first.

        Raises:
          ModelError: the tensor is missing, has another shape, or has a type that cannot be
            dequantized.
        """
        if name not in self._tensors:
            raise ModelError(
                f"{self.path}: tensor {name}: expected shape {list(shape)}, but it is missing"
            )
        part, info = self._tensors[name]
        if info.shape != shape:
            raise ModelError(
                f"{part.path}: tensor {name}: expected shape {list(shape)}, got {list(info.shape)}"
            )
        try:
            # Blocks whose scales are infinite give values that are not finite, which is the
            # caller's to find.
            with np.errstate(all="ignore"):
                values = gguf.dequantize(part.elements(info), info.type)
        except NotImplementedError:
            raise ModelError(
                f"{part.path}: tensor {name}: expected floating-point or quantized weights, got "
                f"type {info.type.name}"
            ) from None
        return np.asarray(values, np.float32).reshape(shape)


def _all_parts(named: _Part, count: int) -> list[_Part]:
    """All parts of a model, in order, of which one is open."""
    match = _PART_NAME.fullmatch(os.path.basename(named.path))
    if match is None or int(match["count"]) != count:
        raise ModelError(
            f"{named.path}: split.count: expected 1, or a file named NAME-00001-of-{count:05}.gguf "
            f"with its other parts beside it, got {count}"
        )
    folder = ModelFolder(pathlib.Path(named.path).parent)
    parts = []
    for number in range(count):
        name = f"{match['prefix']}-{number + 1:05}-of-{count:05}.gguf"
        is_named = name == os.path.basename(named.path)
        part = named if is_named else _Part(str(folder.file(name)))
        keys = part.header.metadata
        if keys.integer("split.count", _PARTS) != count:
            raise keys.error("split.count", f"{count}, as in {named.path}")
        if keys.integer("split.no", _PARTS) != number:
            raise keys.error("split.no", f"{number}, as the file's name says")
        parts.append(part)
    return parts
