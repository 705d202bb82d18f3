"""A model on disk, whatever its format."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax

from jax_tkg.limits import SIZE_MULTIPLE
from jax_tkg.models import gguf, gguf_tokenizer, json_config, json_tokenizer, safetensors
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.hub_cache import cached_model
from jax_tkg.models.packing import PackedModel, outline
from jax_tkg.models.tokenizer import Tokenizer

_EXPECTED = "a GGUF file, or a folder with config.json, safetensors and tokenizer.json"
_FIRST_PART = "-00001-of-"
_LATER_PART = r"*-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].gguf"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model whose description and tokenizer are read and whose weights are not yet.

    Attributes:
      config: the model's sizes.
      tokenizer: its tokenizer.
      load: (dtype, tensor_parallel, progress, hidden_multiple) -> the model; see
        `jax_tkg.models.gguf.load`.
      seems_tied: whether the head is the embedding. In a folder that holds both, only their values
        tell, which `load` compares.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    load: Callable[..., PackedModel]
    seems_tied: bool

    def outline(
        self,
        dtype: jax.typing.DTypeLike,
        tensor_parallel: int,
        hidden_multiple: int = SIZE_MULTIPLE,
    ) -> PackedModel:
        """The model with shapes in place of arrays; see `jax_tkg.models.packing.outline`."""
        return outline(self.config, dtype, tensor_parallel, self.seems_tied, hidden_multiple)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a model.

    Args:
      path: a GGUF file (of several parts, any), a folder with `config.json`, safetensors and
        `tokenizer.json`, or a folder with one model in GGUF and no safetensors; `~` is the home
        folder. Or the name, "org/name", of a model that the Hugging Face Hub's cache has on disk.

    Raises:
      ModelError: it is absent, damaged or of an unknown family; the message is one line.
    """
    name, path = os.fspath(path), _expanded(path)
    if not os.path.lexists(path):
        path = cached_model(name) or path
    if path.is_dir() and _is_of_gguf(path):
        path = _gguf_in(path)
    if path.is_dir():
        return Checkpoint(
            config=safetensors.read_config(path),
            tokenizer=json_tokenizer.read_tokenizer(path),
            load=lambda *options: safetensors.load(path, *options),
            seems_tied=safetensors.seems_tied(path),
        )
    if not os.path.lexists(path):
        raise ModelError(f"{path}: expected {_EXPECTED}, got no such file or folder")
    if path.suffix in (".safetensors", ".json", ".bin", ".pt", ".pth"):
        raise ModelError(
            f"{path}: expected {_EXPECTED}, got a single file; the folder is {path.parent}"
        )
    file = gguf.GgufFile(path)
    return Checkpoint(
        config=gguf.read_config(file),
        tokenizer=gguf_tokenizer.read_tokenizer(file),
        load=lambda *options: gguf.load(file, *options),
        seems_tied="output.weight" not in file.tensor_names,
    )


def _expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path with the home folder in the place of `~`."""
    if "\0" in os.fspath(path):
        raise ModelError(f"{path}: expected {_EXPECTED}, got no such file or folder")
    return pathlib.Path(os.path.expanduser(path))


def _is_of_gguf(folder: pathlib.Path) -> bool:
    """Whether a folder's model is in GGUF, beside which a `config.json` may lie."""
    if not os.path.lexists(folder / json_config.CONFIG):
        return True
    return not any(folder.glob("*.safetensors")) and any(folder.glob("*.gguf"))


def _gguf_in(folder: pathlib.Path) -> pathlib.Path:
    """The one model in GGUF files in a folder; of several parts, the first."""
    files = sorted(folder.glob("*.gguf"))
    parts = set(folder.glob(_LATER_PART))
    models = [file for file in files if file not in parts or _FIRST_PART in file.name]
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(file.name for file in models)
        raise ModelError(f"{folder}: expected one model, got {len(models)} GGUF files: {names}")
    raise ModelError(f"{folder}: expected {_EXPECTED}, got a folder without config.json or GGUF")
