"""A model on disk, whatever its format."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

from jax_tkg.models import gguf, gguf_tokenizer, json_tokenizer, safetensors
from jax_tkg.models.config import LlamaConfig
from jax_tkg.models.llama import LlamaModel
from jax_tkg.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model whose description and tokenizer are read and whose weights are not yet.

    Attributes:
      config: the model's sizes.
      tokenizer: its tokenizer.
      load: (dtype, tensor_parallel, progress) -> the model; see `jax_tkg.models.gguf.load`.
    """

    config: LlamaConfig
    tokenizer: Tokenizer
    load: Callable[..., LlamaModel]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.

    Raises:
      ModelError: it is absent, damaged or no llama model; the message is one line.
    """
    if os.path.isdir(path):
        folder = pathlib.Path(path)
        return Checkpoint(
            config=safetensors.read_config(folder),
            tokenizer=json_tokenizer.read_tokenizer(folder),
            load=lambda *options: safetensors.load(folder, *options),
        )
    file = gguf.GgufFile(path)
    return Checkpoint(
        config=gguf.read_config(file),
        tokenizer=gguf_tokenizer.read_tokenizer(file),
        load=lambda *options: gguf.load(file, *options),
    )
