"""Reading llama-architecture models from GGUF files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import gguf
import jax
import numpy as np

from jax_tkg.models import llama
from jax_tkg.models.config import LlamaConfig
from jax_tkg.models.errors import ModelError

Progress = Callable[[int, int], None]
"""Called with the layers read so far and the layers there are."""

_REQUIRED = object()


class _Reader(gguf.GGUFReader):
    """gguf's reader, with an error that names the first tensor a truncated file lacks."""

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        size = int(self.data.size)
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(kind[0]))]
            needed = int(np.prod(dims, dtype=np.int64)) * block_bytes // block
            end = start_offs + int(offset[0]) + needed
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
          ModelError: it is absent, no GGUF file, or truncated.
        """
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise ModelError(f"{self.path}: no such file")
        try:
            self._reader = _Reader(self.path)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None
        # gguf reads arrays straight off the file; what a damaged header makes it do is open.
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{self.path}: not a readable GGUF file: {reason}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def field(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of a metadata field: a Python scalar, string or list.

        Raises:
          ModelError: the field is absent and no default is given, or cannot be read.
        """
        found = self._reader.fields.get(name)
        if found is None:
            if default is _REQUIRED:
                raise ModelError(f"{self.path}: metadata field {name} is missing")
            return default
        try:
            return found.contents()
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise ModelError(f"{self.path}: metadata field {name} is damaged: {error}") from error

    def has_tensor(self, name: str) -> bool:
        """Whether the file has a tensor of that name."""
        return name in self._tensors

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
      ModelError: another architecture than llama, a missing field, or a feature that
        `transformer_tkg` does not have.
    """
    architecture = file.field("general.architecture")
    if architecture != "llama":
        raise ModelError(f"{file.path}: architecture: expected 'llama', got {architecture!r}")
    hidden = int(file.field("llama.embedding_length"))
    heads = int(file.field("llama.attention.head_count"))
    head_size = int(file.field("llama.attention.key_length", hidden // heads))
    rotated = int(file.field("llama.rope.dimension_count", head_size))
    if rotated != head_size:
        raise ModelError(
            f"{file.path}: llama.rope.dimension_count: expected the whole head, {head_size}, "
            f"got {rotated}"
        )
    if int(file.field("llama.expert_count", 0)):
        raise ModelError(f"{file.path}: llama.expert_count: expected a dense model, got experts")
    factors = None
    if file.has_tensor("rope_freqs.weight"):
        factors = tuple(float(x) for x in file.tensor("rope_freqs.weight", (head_size // 2,)))
    return LlamaConfig(
        num_layers=int(file.field("llama.block_count")),
        hidden_size=hidden,
        intermediate_size=int(file.field("llama.feed_forward_length")),
        num_heads=heads,
        num_kv_heads=int(file.field("llama.attention.head_count_kv", heads)),
        head_size=head_size,
        vocabulary_size=len(file.field("tokenizer.ggml.tokens")),
        context_length=int(file.field("llama.context_length")),
        rope_theta=float(file.field("llama.rope.freq_base", 10000.0)),
        rms_norm_eps=float(file.field("llama.attention.layer_norm_rms_epsilon")),
        rope_factors=factors,
    )


def load(
    file: GgufFile,
    dtype: jax.typing.DTypeLike,
    tensor_parallel: int = 1,
    progress: Progress | None = None,
) -> llama.LlamaModel:
    """Loads a model.

    Args:
      file: an open file.
      dtype: dtype of the weights.
      tensor_parallel: ranks to pack for; a divisor of the numbers of heads.
      progress: called after each layer.

    Raises:
      ModelError: the file is no complete llama model, or its heads do not split over the ranks.
    """
    config = read_config(file)
    llama.check_tensor_parallel(config, tensor_parallel, file.path)
    vocabulary = (config.vocabulary_size, config.hidden_size)
    embedding = file.tensor("token_embd.weight", vocabulary)
    tied = not file.has_tensor("output.weight")

    def read(index: int) -> llama.LayerTensors:
        tensors = _read_layer(file, config, index)
        if progress is not None:
            progress(index + 1, config.num_layers)
        return tensors

    return llama.build(
        config,
        layers=[functools.partial(read, index) for index in range(config.num_layers)],
        embedding=embedding,
        head=None if tied else file.tensor("output.weight", vocabulary),
        final_norm=file.tensor("output_norm.weight", (config.hidden_size,)),
        dtype=dtype,
        tensor_parallel=tensor_parallel,
    )


def _read_layer(file: GgufFile, config: LlamaConfig, index: int) -> llama.LayerTensors:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    query_rows = config.num_heads * config.head_size
    kv_rows = config.num_kv_heads * config.head_size

    def tensor(name: str, *shape: int) -> np.ndarray:
        return file.tensor(f"blk.{index}.{name}.weight", shape)

    return llama.LayerTensors(
        query=_contiguous_halves(tensor("attn_q", query_rows, hidden), config.num_heads),
        key=_contiguous_halves(tensor("attn_k", kv_rows, hidden), config.num_kv_heads),
        value=tensor("attn_v", kv_rows, hidden),
        output=tensor("attn_output", hidden, query_rows),
        gate=tensor("ffn_gate", intermediate, hidden),
        up=tensor("ffn_up", intermediate, hidden),
        down=tensor("ffn_down", hidden, intermediate),
        attention_norm=tensor("attn_norm", hidden),
        mlp_norm=tensor("ffn_norm", hidden),
    )


def _contiguous_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes GGUF's order of query and key rows, which is for RoPE on adjacent pairs.

    Row 2i + j of a head goes to row j * d/2 + i.
    """
    by_pair = rows.reshape(heads, -1, 2, rows.shape[1])
    return by_pair.swapaxes(1, 2).reshape(rows.shape)
