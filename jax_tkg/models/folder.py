"""The files of a model's folder: regular ones that lie inside it, of bounded size."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.typed_keys import TypedKeys

MAX_TEXT_BYTES = 256 << 20
"""Largest text file that is read; the largest tokenizers have tens of megabytes."""


class ModelFolder:
    """A folder whose files are read by name.

    A name, which may come from a file of the folder itself, is refused where it leads outside: by
    `..`, as an absolute path, or over a symbolic link. One layout is excepted: in the cache of the
    Hugging Face Hub, `REPOSITORY/snapshots/REVISION` and the folders in it hold links into
    `REPOSITORY/blobs`.

    Args:
      path: the folder.

    Attributes:
      path: as given.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        real = path.resolve()
        self._roots = [real]
        for revision in (real, *real.parents):
            if revision.parent.name == "snapshots":
                self._roots.append(revision.parent.parent / "blobs")

    def has(self, name: str) -> bool:
        """Whether there is a file, or anything else, of this name."""
        return (self.path / name).is_symlink() or (self.path / name).exists()

    def file(self, name: str) -> pathlib.Path:
        """The path of a file that can be opened.

        Raises:
          ModelError: the name leads out of the folder, or to no regular file.
        """
        path = self.path / name
        try:
            real = path.resolve()
            is_file = real.is_file()
        # Names of files that come from a file: too long, with a NUL, or links in a circle.
        except (OSError, ValueError, RuntimeError) as error:
            # The whole message of an OSError has the name again, at its end.
            reason = getattr(error, "strerror", None) or one_line(error)
            raise ModelError(
                f"{self.path}: {name}: expected a file's name, got one that cannot be looked up: "
                f"{reason}"
            ) from None
        if not any(real.is_relative_to(root) for root in self._roots):
            raise ModelError(f"{self.path}: {name}: expected a file inside the folder, got {real}")
        if not is_file:
            got = "something else" if real.exists() else "no such file"
            raise ModelError(f"{path}: expected a file, got {got}")
        return path

    def text(self, name: str) -> str:
        """The text of a UTF-8 file.

        Raises:
          ModelError: it is absent, outside of the folder, too large or not UTF-8.
        """
        path = self.file(name)
        try:
            if (size := path.stat().st_size) > MAX_TEXT_BYTES:
                raise ModelError(f"{path}: expected at most {MAX_TEXT_BYTES} bytes, got {size}")
            content = path.read_bytes()
            return content.decode("utf-8")
        except OSError as error:
            raise ModelError(f"{path}: expected a readable file, got {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{path}: expected text in UTF-8, got byte {content[error.start]:#04x} at "
                f"{error.start}"
            ) from None

    def json(self, name: str) -> TypedKeys:
        """The keys of the object in a JSON file.

        Raises:
          ModelError: as `text`, or the file holds no JSON object.
        """
        path, text = self.path / name, self.text(name)
        try:
            content: Any = json.loads(text)
        except ValueError as error:
            raise ModelError(f"{path}: expected JSON, got {one_line(error)}") from None
        except RecursionError:
            raise ModelError(f"{path}: expected JSON, got values nested too deeply") from None
        if not isinstance(content, dict):
            raise ModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
        return TypedKeys(str(path), content)

    def optional_json(self, name: str) -> TypedKeys:
        """As `json`, without keys where there is no such file."""
        return self.json(name) if self.has(name) else TypedKeys(str(self.path / name), {})
