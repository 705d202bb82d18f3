"""A tiny llama with random weights, written to a GGUF file by gguf's own writer."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

END, USER, ASSISTANT, WHOLE = "<|end|>", "<|user|>", "<|assistant|>", "<whole word>"
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("1", "2"), ("a", "n"), ("an", "d"))
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
VOCABULARY = (
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *("".join(pair) for pair in MERGES),
    WHOLE,
    END,
    USER,
    ASSISTANT,
)
TOKEN_TYPES = (
    *(gguf.TokenType.NORMAL,) * (len(VOCABULARY) - 4),
    gguf.TokenType.USER_DEFINED,
    *(gguf.TokenType.CONTROL,) * 3,
)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Sizes of a model; the hidden and MLP sizes are no multiples of 128."""

    num_layers: int = 2
    hidden_size: int = 96
    intermediate_size: int = 160
    num_heads: int = 6
    num_kv_heads: int = 2
    head_size: int = 16
    context_length: int = 512
    rope_theta: float = 500.0
    rope_linear_factor: float = 1.0
    eps: float = 1e-2
    tied: bool = True
    rope_factors: bool = False
    quantization: str = "F32"

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, intermediate = self.hidden_size, self.intermediate_size
        query, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return {
            "attn_norm": (hidden,),
            "attn_q": (query, hidden),
            "attn_k": (kv, hidden),
            "attn_v": (kv, hidden),
            "attn_output": (hidden, query),
            "ffn_norm": (hidden,),
            "ffn_gate": (intermediate, hidden),
            "ffn_up": (intermediate, hidden),
            "ffn_down": (hidden, intermediate),
        }

    def tensors(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Random tensors by their name in the file, float32."""
        rng = np.random.default_rng(seed)
        shapes = {
            f"blk.{index}.{name}.weight": shape
            for index in range(self.num_layers)
            for name, shape in self.layer_shapes().items()
        }
        shapes["token_embd.weight"] = (len(VOCABULARY), self.hidden_size)
        shapes["output_norm.weight"] = (self.hidden_size,)
        if not self.tied:
            shapes["output.weight"] = (len(VOCABULARY), self.hidden_size)
        if self.rope_factors:
            shapes["rope_freqs.weight"] = (self.head_size // 2,)
        return {name: _random(rng, shape) for name, shape in shapes.items()}

    def metadata(self) -> dict[str, Any]:
        """The fields of the file's header by name."""
        fields: dict[str, Any] = {
            "llama.block_count": self.num_layers,
            "llama.context_length": self.context_length,
            "llama.embedding_length": self.hidden_size,
            "llama.feed_forward_length": self.intermediate_size,
            "llama.attention.head_count": self.num_heads,
            "llama.attention.head_count_kv": self.num_kv_heads,
            "llama.attention.key_length": self.head_size,
            "llama.attention.layer_norm_rms_epsilon": self.eps,
            "llama.rope.freq_base": self.rope_theta,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": list(VOCABULARY),
            "tokenizer.ggml.token_type": [int(kind) for kind in TOKEN_TYPES],
            "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
            "tokenizer.ggml.eos_token_id": VOCABULARY.index(END),
            "tokenizer.chat_template": CHAT_TEMPLATE,
        }
        if self.rope_linear_factor != 1:
            fields["llama.rope.scaling.type"] = "linear"
            fields["llama.rope.scaling.factor"] = self.rope_linear_factor
        return fields


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    # Larger than 1/sqrt(fan_in), so that attention is far from uniform and a wrong turn shows.
    return (rng.standard_normal(shape) * 2 / np.sqrt(shape[1])).astype(np.float32)


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    architecture: str = "llama",
    quantization: str = "F32",
) -> dict[str, np.ndarray]:
    """Writes a file; a field that is None is left out.

    Returns:
      The tensors as the file holds them: matrices are rounded by the quantization.
    """
    writer = gguf.GGUFWriter(path, architecture)
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in metadata.items():
        if value is not None:
            adders[type(value)](name, value)
    kind = gguf.GGMLQuantizationType[quantization]
    stored = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 1 or quantization == "F32":
            writer.add_tensor(name, tensor)
            stored[name] = tensor
        else:
            blocks = gguf.quantize(tensor, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            stored[name] = gguf.dequantize(blocks, kind).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def write_tiny(
    path: pathlib.Path, shape: Tiny | None = None, **metadata: Any
) -> dict[str, np.ndarray]:
    """Writes a model, with some header fields changed (dots as two underscores)."""
    shape = shape or Tiny()
    fields = shape.metadata() | {name.replace("__", "."): value for name, value in metadata.items()}
    return write(path, shape.tensors(), fields, quantization=shape.quantization)
