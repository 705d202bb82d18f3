"""Reading models from folders in the format of Hugging Face transformers.

Such a folder holds `config.json` and `model.safetensors`, or several files of tensors listed in
`model.safetensors.index.json`.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors

from jax_tkg.limits import SIZE_MULTIPLE
from jax_tkg.models import float8_tensors, json_config, mxfp4_tensors, packing
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.errors import ModelError, one_line
from jax_tkg.models.families import known
from jax_tkg.models.float8_tensors import Float8, Float8File
from jax_tkg.models.folder import ModelFolder
from jax_tkg.models.layer_tensors import (
    LAYER_NUMBER,
    LayerTensors,
    StoredLayers,
)
from jax_tkg.models.typed_keys import shown

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_DTYPES = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights that are the values themselves: float8 and integers need scales."""


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The model's sizes from `config.json`.

    Raises:
      ModelError: an unknown family, a missing or impossible value, or a feature that the family's
        module or `transformer_tkg` does not have.
    """
    return json_config.read_config(ModelFolder(folder).json(json_config.CONFIG))


def seems_tied(folder: pathlib.Path) -> bool:
    """Whether `config.json` says that the head is the embedding, or does not say.

    Raises:
      ModelError: the file is absent or damaged.
    """
    return json_config.ties_embeddings(ModelFolder(folder).json(json_config.CONFIG)) is not False


class _Tensors:
    """The tensors of all files of a folder, by name."""

    def __init__(self, folder: ModelFolder, stack: contextlib.ExitStack, float8: Float8):
        self._folder = folder
        self._float8 = float8
        self._where: dict[str, tuple[pathlib.Path, Any]] = {}
        self._float8_files: dict[pathlib.Path, Float8File] = {}
        for name, listed in _files(folder).items():
            path = folder.file(name)
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="np"))
                names = set(file.keys())
            except (OSError, safetensors.SafetensorError) as error:
                raise ModelError(
                    f"{path}: expected a readable safetensors file, got {one_line(error)}"
                ) from error
            for tensor in sorted(listed - names):
                raise ModelError(
                    f"{folder.path / _INDEX}: weight_map.{tensor}: expected a file that holds the "
                    f"tensor, got {name!r}"
                )
            for tensor in names:
                if tensor in self._where:
                    raise ModelError(
                        f"{path}: tensor {tensor}: expected it in one file, got it in "
                        f"{self._where[tensor][0]} too"
                    )
                self._where[tensor] = (path, file)
        self._scales = self._found_scales()

    def _found_scales(self) -> dict[str, str]:
        """The name of each float8 tensor's scale; checks the dtypes of all tensors."""
        scales = {}
        for tensor, (path, file) in self._where.items():
            stored = file.get_slice(tensor)
            if self._is_mxfp4(tensor.removesuffix(mxfp4_tensors.BLOCKS)) or self._is_mxfp4(
                tensor.removesuffix(mxfp4_tensors.SCALES)
            ):
                continue
            dtype, is_matrix = stored.get_dtype(), len(stored.get_shape()) == 2
            names = [tensor + suffix for suffix in float8_tensors.SCALE_SUFFIXES]
            scale = next((name for name in names if name in self._where), None)
            if dtype in float8_tensors.DTYPES and is_matrix and scale is not None:
                scales[tensor] = scale
            elif dtype not in _DTYPES:
                raise ModelError(
                    f"{path}: tensor {tensor}: expected one of the dtypes {', '.join(_DTYPES)}, "
                    f"got {dtype}"
                )
        return scales

    @property
    def names(self) -> list[str]:
        """The names of all tensors except scales; an MXFP4 weight, stored in two, has one name."""
        scales = set(self._scales.values())
        found = []
        for name in self._where:
            weight = name.removesuffix(mxfp4_tensors.BLOCKS)
            if self._is_mxfp4(weight):
                found.append(weight)
            elif name not in scales and not self._is_mxfp4(name.removesuffix(mxfp4_tensors.SCALES)):
                found.append(name)
        return found

    def _is_mxfp4(self, name: str) -> bool:
        """Whether the weight of this name is stored in two tensors of MXFP4."""
        parts = [name + mxfp4_tensors.BLOCKS, name + mxfp4_tensors.SCALES]
        if name in self._where or not all(part in self._where for part in parts):
            return False
        slices = [self._where[part][1].get_slice(part) for part in parts]
        return all(stored.get_dtype() == mxfp4_tensors.DTYPE for stored in slices)

    def _read_mxfp4(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        parts = [name + mxfp4_tensors.BLOCKS, name + mxfp4_tensors.SCALES]
        (path, _), _ = (self._where[part] for part in parts)
        blocks, scales = (self._where[part][1].get_tensor(part) for part in parts)
        found = [blocks.shape[0], blocks.shape[2] * 32, blocks.shape[1]] if blocks.ndim == 4 else []
        if not mxfp4_tensors.is_shape(blocks.shape, scales.shape) or found != list(shape):
            raise ModelError(
                f"{path}: tensor {parts[0]}: expected blocks and scales of a weight {list(shape)}, "
                f"got {list(blocks.shape)} and {list(scales.shape)}"
            )
        return mxfp4_tensors.multiplied(blocks, scales)

    def read(self, name: str, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> np.ndarray:
        """A tensor that must have the given shape, and values that the model's dtype can hold."""
        if self._is_mxfp4(name):
            values = self._read_mxfp4(name, shape)
            packing.check_values(f"{self._folder.path}: tensor {name}", values, dtype)
            return values
        if name not in self._where:
            raise ModelError(
                f"{self._folder.path}: tensor {name}: expected shape {list(shape)}, but it is "
                f"missing"
            )
        path, file = self._where[name]
        actual = file.get_slice(name).get_shape()
        if list(actual) != list(shape):
            raise ModelError(f"{path}: tensor {name}: expected shape {list(shape)}, got {actual}")
        if name in self._scales:
            scale_path, scale_file = self._where[self._scales[name]]
            where = f"{scale_path}: tensor {self._scales[name]}"
            scale = scale_file.get_tensor(self._scales[name])
            if path not in self._float8_files:
                self._float8_files[path] = Float8File(path)
            stored = self._float8_files[path].tensor(name)
            values = self._float8.multiplied(where, stored, scale)
        else:
            values = file.get_tensor(name)
        packing.check_values(f"{path}: tensor {name}", values, dtype)
        return values


def _files(folder: ModelFolder) -> dict[str, set[str]]:
    """The files of tensors, each with the names of tensors that the index says it holds."""
    if folder.has(_SINGLE) or not folder.has(_INDEX):
        return {_SINGLE: set()}
    index = folder.json(_INDEX)
    key = "weight_map"
    weight_map = index.raw(key)
    if not isinstance(weight_map, dict) or not weight_map:
        raise index.error(key, "an object with a file's name for each tensor")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise ModelError(
                f"{index.file}: {key}.{tensor}: expected the name of a file in the folder, got "
                f"{shown(name)}"
            )
        files.setdefault(name, set()).add(tensor)
    return files


def load(
    folder: pathlib.Path,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: packing.Progress | None = None,
    hidden_multiple: int = SIZE_MULTIPLE,
) -> packing.PackedModel:
    """Loads a model.

    Where `config.json` ties the head to the embedding and another head is stored, the stored one
    is used. Where it does not say, the head is tied if none is stored.

    Args:
      folder: holds `config.json` and the tensors.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; see `jax_tkg.weights.split_heads`.
      progress: called after each layer.
      hidden_multiple: what H is a multiple of, see `jax_tkg.models.packing.hidden_multiple_for`.

    Raises:
      ModelError: the folder holds no complete model of a known family, or tensors that such a model
        does not have, or its heads do not split over the ranks.
    """
    files = ModelFolder(folder)
    keys = files.json(json_config.CONFIG)
    config = json_config.read_config(keys)
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(files, stack, float8_tensors.read_float8(keys))
        family = known.json_family(keys)
        storage = family.storage
        stored = StoredLayers(config, storage)
        whose = f"a {family.model_type} model of {config.num_layers} layers"
        _check_names(folder, tensors.names, stored, whose)
        packing.check_layers_present(
            str(folder), set(tensors.names), stored, config.num_layers, "model.layers"
        )
        embedding, head = _vocabulary(tensors, config, json_config.ties_embeddings(keys), dtype)
        final_norm = tensors.read(_FINAL_NORM, (config.hidden_size,), dtype)
        return packing.build(
            config,
            layers=_read_layers(tensors, stored, dtype),
            embedding=embedding,
            head=head,
            final_norm=storage.gain(final_norm),
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            progress=progress,
            hidden_multiple=hidden_multiple,
        )


def _vocabulary(
    tensors: _Tensors, config: ModelConfig, tied: bool | None, dtype: jax.typing.DTypeLike
) -> tuple[np.ndarray, np.ndarray | None]:
    """The embedding, and the head where it is not the embedding."""
    shape = (config.vocabulary_size, config.hidden_size)
    has_head = _HEAD in tensors.names
    if tied and has_head and _EMBEDDING not in tensors.names:
        # Of two names for one tensor, tools that save the storage keep either.
        return tensors.read(_HEAD, shape, dtype), None
    embedding = tensors.read(_EMBEDDING, shape, dtype)
    if tied or tied is None:
        if not has_head:
            return embedding, None
        head = tensors.read(_HEAD, shape, dtype)
        return embedding, None if tied and np.array_equal(head, embedding) else head
    return embedding, tensors.read(_HEAD, shape, dtype)


def _check_names(folder: pathlib.Path, names: list[str], stored: StoredLayers, whose: str) -> None:
    """Refuses tensors that would be left out, such as biases: the model would be another one."""
    for name in names:
        layer = re.fullmatch(rf"model\.layers\.({LAYER_NUMBER})\.(.+)", name)
        expected = layer and stored.holds(int(layer[1]), layer[2])
        # Old checkpoints store the RoPE frequencies, which follow from the configuration.
        derived = name.endswith(".rotary_emb.inv_freq")
        if not (expected or derived or name in (_EMBEDDING, _HEAD, _FINAL_NORM)):
            raise ModelError(
                f"{folder}: tensor {name}: expected no tensor of that name in {whose}, got one"
            )


def _read_layers(
    tensors: _Tensors, stored: StoredLayers, dtype: jax.typing.DTypeLike
) -> Iterator[LayerTensors]:
    for index in range(stored.config.num_layers):
        arrays = {
            name: tensors.read(f"model.layers.{index}.{name}", shape, dtype)
            for name, shape in stored.shapes(index).items()
        }
        yield stored.separated(index, arrays)
