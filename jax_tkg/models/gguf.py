"""Reading models from GGUF files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import jax
import numpy as np

from jax_tkg.limits import SIZE_MULTIPLE
from jax_tkg.models import packing
from jax_tkg.models.errors import ModelError
from jax_tkg.models.families import known
from jax_tkg.models.families.gguf_layers import OTHER_TENSORS
from jax_tkg.models.gguf_config import read_config
from jax_tkg.models.gguf_file import GgufFile
from jax_tkg.models.layer_tensors import (
    LAYER_NUMBER,
    LayerTensors,
    StoredLayers,
)

__all__ = ["GgufFile", "load", "read_config"]


def load(
    file: GgufFile,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: packing.Progress | None = None,
    hidden_multiple: int = SIZE_MULTIPLE,
) -> packing.PackedModel:
    """Loads a model.

    Args:
      file: an open file.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; see `jax_tkg.weights.split_heads`.
      progress: called after each layer.
      hidden_multiple: what H is a multiple of, see `jax_tkg.models.packing.hidden_multiple_for`.

    Raises:
      ModelError: the file is no complete model of a known family, has tensors that such a model
        does not, or its heads do not split over the ranks.
    """
    config = read_config(file)
    storage = known.gguf_family(file.metadata).storage
    stored = StoredLayers(config, storage)
    _check_names(file, stored)
    packing.check_layers_present(
        file.path, set(file.tensor_names), stored, config.num_layers, "blk"
    )
    vocabulary = (config.vocabulary_size, config.hidden_size)
    tied = "output.weight" not in file.tensor_names
    packing.check_tensor_parallel(config, tensor_parallel)
    final_norm = _checked(file, "output_norm.weight", (config.hidden_size,), dtype)
    return packing.build(
        config,
        layers=_read_layers(file, stored, dtype),
        embedding=_checked(file, "token_embd.weight", vocabulary, dtype),
        head=None if tied else _checked(file, "output.weight", vocabulary, dtype),
        final_norm=storage.gain(final_norm),
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        progress=progress,
        hidden_multiple=hidden_multiple,
    )


def _checked(
    file: GgufFile, name: str, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> np.ndarray:
    """A tensor of the given shape whose values the model's dtype can hold."""
    values = file.tensor(name, shape)
    packing.check_values(f"{file.path}: tensor {name}", values, dtype)
    return values


def _check_names(file: GgufFile, stored: StoredLayers) -> None:
    """Refuses tensors that would be left out, such as biases: the model would be another one."""
    for name in file.tensor_names:
        layer = re.fullmatch(rf"blk\.({LAYER_NUMBER})\.(.+)", name)
        expected = layer and stored.holds(int(layer[1]), layer[2])
        if not expected and name not in OTHER_TENSORS:
            architecture = file.metadata.raw("general.architecture")
            raise ModelError(
                f"{file.path}: tensor {name}: expected no tensor of that name in a {architecture} "
                f"model of {stored.config.num_layers} layers, got one"
            )


def _read_layers(
    file: GgufFile, stored: StoredLayers, dtype: jax.typing.DTypeLike
) -> Iterator[LayerTensors]:
    for index in range(stored.config.num_layers):
        arrays = {
            name: _checked(file, f"blk.{index}.{name}", shape, dtype)
            for name, shape in stored.shapes(index).items()
        }
        yield stored.separated(index, arrays)
