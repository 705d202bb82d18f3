"""Reading llama-architecture models from GGUF files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import gguf
import jax
import numpy as np

from jax_tkg.models import llama
from jax_tkg.models.config import LlamaConfig
from jax_tkg.models.errors import ModelError, one_line

_REQUIRED = object()

_LAYER_TENSORS = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
}
"""Names of one layer's tensors by the fields of `llama.LayerTensors`."""

_OTHER_TENSORS = ("token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight")


class _Reader(gguf.GGUFReader):
    """gguf's reader, with an error that names the first tensor a truncated file lacks."""

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        size = int(self.data.size)
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind[0]))]
            elements = 1
            for dimension in dims:
                elements *= int(dimension)
            end = start_offs + int(offset[0]) + elements * block_bytes // block
            if end > size:
                raise ModelError(
                    f"tensor {bytes(name).decode('utf-8', 'replace')} ends at byte {end}, but the "
                    f"file has {size}: it is truncated"
                )
        super()._build_tensors(start_offs, fields)


class GgufFile:
    """A GGUF file: metadata and tensors, every access checked.

    Attributes:
      path: where the file is.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens a file and reads its header.

        Args:
          path: the file.

        Raises:
          ModelError: it is absent, no GGUF file, damaged, truncated, or one of several parts.
        """
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise ModelError(f"{self.path}: no such file")
        try:
            self._reader = _Reader(self.path)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None
        # gguf reads arrays straight off the file, so a damaged header may do anything to it.
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ModelError(f"{self.path}: not a readable GGUF file ({reason})") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        parts = self.field("split.count", 1)
        if parts != 1:
            raise ModelError(f"{self.path}: split.count: expected a model in one file, got {parts}")

    def field(self, name: str, default: Any = _REQUIRED, kind: type | None = None) -> Any:
        """The value of a metadata field: a Python scalar, string or list.

        Args:
          name: the field's key.
          default: what to return where it is absent; where none is given it is required.
          kind: the Python type it must have; an integer passes for a float.

        Raises:
          ModelError: the field is absent and no default is given, is damaged, or has another type.
        """
        found = self._reader.fields.get(name)
        if found is None:
            if default is _REQUIRED:
                raise ModelError(f"{self.path}: metadata field {name} is missing")
            return default
        try:
            value = found.contents()
        except (ValueError, IndexError) as error:
            raise ModelError(
                f"{self.path}: metadata field {name} is damaged: {one_line(error)}"
            ) from error
        if kind is float and type(value) is int:
            return float(value)
        if kind is not None and type(value) is not kind:
            raise ModelError(
                f"{self.path}: metadata field {name}: expected {kind.__name__}, got "
                f"{type(value).__name__}"
            )
        return value

    @property
    def tensor_names(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._tensors)

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor, dequantised to float32.

        Args:
          name: its name in the file.
          shape: the shape it must have, rows first.

        Raises:
          ModelError: the tensor is missing, has another shape, cannot be dequantised, or holds a
            value that is not finite.
        """
        found = self._tensors.get(name)
        if found is None:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        actual = tuple(int(size) for size in reversed(found.shape))
        if actual != shape:
            raise ModelError(
                f"{self.path}: tensor {name}: expected shape {list(shape)}, got {list(actual)}"
            )
        try:
            values = gguf.dequantize(found.data, found.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path}: tensor {name}: type {found.tensor_type.name} is not supported"
            ) from error
        values = np.asarray(values, np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise ModelError(f"{self.path}: tensor {name} holds values that are not finite")
        return values


def read_config(file: GgufFile) -> LlamaConfig:
    """The model's sizes from the metadata.

    Raises:
      ModelError: another architecture than llama, a missing or impossible value, or a feature that
        `transformer_tkg` does not have.
    """
    architecture = file.field("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"{file.path}: general.architecture: expected 'llama', got {architecture!r}"
        )
    hidden = file.field("llama.embedding_length", kind=int)
    heads = file.field("llama.attention.head_count", kind=int)
    head_size = file.field("llama.attention.key_length", hidden // max(heads, 1), kind=int)
    for name in ("llama.rope.dimension_count", "llama.attention.value_length"):
        size = file.field(name, head_size, kind=int)
        if size != head_size:
            raise ModelError(
                f"{file.path}: {name}: expected the size of a whole head, {head_size}, got {size}"
            )
    if file.field("llama.expert_count", 0):
        raise ModelError(f"{file.path}: llama.expert_count: expected a dense model, got experts")
    try:
        config = LlamaConfig(
            num_layers=file.field("llama.block_count", kind=int),
            hidden_size=hidden,
            intermediate_size=file.field("llama.feed_forward_length", kind=int),
            num_heads=heads,
            num_kv_heads=file.field("llama.attention.head_count_kv", heads, kind=int),
            head_size=head_size,
            vocabulary_size=len(file.field("tokenizer.ggml.tokens", kind=list)),
            context_length=file.field("llama.context_length", kind=int),
            rope_theta=file.field("llama.rope.freq_base", 10000.0, kind=float),
            rms_norm_eps=file.field("llama.attention.layer_norm_rms_epsilon", kind=float),
        )
        return dataclasses.replace(config, rope_factors=_rope_factors(file, head_size))
    except ModelError as error:
        raise _with_path(file, error) from None


def _with_path(file: GgufFile, error: ModelError) -> ModelError:
    message = str(error)
    return error if message.startswith(file.path) else ModelError(f"{file.path}: {message}")


def _rope_factors(file: GgufFile, head_size: int) -> tuple[float, ...] | None:
    """Divisors of the RoPE frequencies: a tensor (Llama 3), a linear scaling, or none."""
    if "rope_freqs.weight" in file.tensor_names:
        return tuple(file.tensor("rope_freqs.weight", (head_size // 2,)).tolist())
    scaling = file.field("llama.rope.scaling.type", "none", kind=str)
    if scaling == "linear":
        return (file.field("llama.rope.scaling.factor", kind=float),) * (head_size // 2)
    if scaling != "none":
        raise ModelError(
            f"{file.path}: llama.rope.scaling.type: expected none or linear, got {scaling!r}"
        )
    return None


def load(
    file: GgufFile,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: llama.Progress | None = None,
) -> llama.LlamaModel:
    """Loads a model.

    Args:
      file: an open file.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; a divisor of the numbers of heads.
      progress: called after each layer.

    Raises:
      ModelError: the file is no complete llama model, has tensors that such a model does not, or
        its heads do not split over the ranks.
    """
    config = read_config(file)
    _check_names(file, config)
    templates = [f"blk.{{layer}}.{tensor}.weight" for tensor in _LAYER_TENSORS.values()]
    llama.check_layers_present(file.path, set(file.tensor_names), templates, config.num_layers)
    vocabulary = (config.vocabulary_size, config.hidden_size)
    tied = "output.weight" not in file.tensor_names
    try:
        return llama.build(
            config,
            layers=_read_layers(file, config),
            embedding=file.tensor("token_embd.weight", vocabulary),
            head=None if tied else file.tensor("output.weight", vocabulary),
            final_norm=file.tensor("output_norm.weight", (config.hidden_size,)),
            dtype=dtype,
            tensor_parallel=tensor_parallel,
            progress=progress,
        )
    except ModelError as error:
        raise _with_path(file, error) from None


def _check_names(file: GgufFile, config: LlamaConfig) -> None:
    """Refuses tensors that would be left out, such as biases: the model would be another one."""
    known = _LAYER_TENSORS.values()
    for name in file.tensor_names:
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        expected = layer and layer[2] in known and int(layer[1]) < config.num_layers
        if not expected and name not in _OTHER_TENSORS:
            raise ModelError(
                f"{file.path}: tensor {name}: expected none of that name in a llama model of "
                f"{config.num_layers} layers"
            )


def _read_layers(file: GgufFile, config: LlamaConfig) -> Iterator[llama.LayerTensors]:
    heads = {"query": config.num_heads, "key": config.num_kv_heads}
    for index in range(config.num_layers):
        tensors = {
            field: file.tensor(f"blk.{index}.{_LAYER_TENSORS[field]}.weight", shape)
            for field, shape in llama.layer_shapes(config).items()
        }
        for field, count in heads.items():
            tensors[field] = _contiguous_halves(tensors[field], count)
        yield llama.LayerTensors(**tensors)


def _contiguous_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes GGUF's order of query and key rows, which is for RoPE on adjacent pairs.

    Row 2i + j of a head goes to row j * d/2 + i.
    """
    by_pair = rows.reshape(heads, -1, 2, rows.shape[1])
    return by_pair.swapaxes(1, 2).reshape(rows.shape)
