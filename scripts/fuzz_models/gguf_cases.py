"""Mutated GGUF files."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import random
import struct
from typing import Any

import numpy as np

from scripts.fuzz_models.case import Case, Mutation, Mutator, Verdict, joined, refused
from tests.models.tiny import Tiny

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}
_ALIGNMENT = 32


@dataclasses.dataclass
class Key:
    """A metadata key: its name and its value's bytes."""

    name: bytes
    kind: int
    value: bytes


@dataclasses.dataclass
class Tensor:
    """A tensor: what the header says of it, and its data."""

    name: bytes
    sizes: list[int]
    kind: int
    data: bytes
    offset: int | None = None


@dataclasses.dataclass
class Image:
    """A GGUF file in parts that can be changed."""

    keys: list[Key]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    order: str = "<"
    extra_tensors: int = 0
    extra_keys: int = 0

    def key(self, name: str) -> Key | None:
        """The key of a name, where it is there."""
        return next((key for key in self.keys if key.name == name.encode()), None)

    def put(self, name: str, kind: int, value: bytes) -> None:
        """Sets a key, or adds it."""
        if (key := self.key(name)) is None:
            self.keys.append(Key(name.encode(), kind, value))
        else:
            key.kind, key.value = kind, value

    def header(self) -> bytes:
        """The bytes before the tensors' data."""
        counts = (len(self.tensors) + self.extra_tensors, len(self.keys) + self.extra_keys)
        parts = [self.magic, struct.pack(self.order + "I", self.version)]
        parts += [struct.pack(self.order + "Q", count % 2**64) for count in counts]
        for key in self.keys:
            parts += [string(key.name), struct.pack("<I", key.kind), key.value]
        offset = 0
        for tensor in self.tensors:
            place = offset if tensor.offset is None else tensor.offset
            parts.append(string(tensor.name))
            parts.append(struct.pack("<I", len(tensor.sizes)))
            parts += [struct.pack("<Q", size % 2**64) for size in tensor.sizes]
            parts.append(struct.pack("<IQ", tensor.kind, place % 2**64))
            offset += _padded(len(tensor.data))
        return b"".join(parts)

    def content(self) -> bytes:
        """The whole file."""
        header = self.header()
        data = [tensor.data + bytes(-len(tensor.data) % _ALIGNMENT) for tensor in self.tensors]
        return header + bytes(-len(header) % _ALIGNMENT) + b"".join(data)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")[:100]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def string(content: bytes) -> bytes:
    """A string as the format holds it."""
    return struct.pack("<Q", len(content)) + content


def encoded(value: Any) -> tuple[int, bytes]:
    """The type and bytes of a Python value."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, str):
        return STRING, string(value.encode())
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, int):
        if 0 <= value < 2**32:
            return U32, struct.pack("<I", value)
        return (I64 if value < 0 else U64), struct.pack("<q" if value < 0 else "<Q", value)
    kind = encoded(value[0])[0] if value else U32
    items = b"".join(encoded(item)[1] for item in value)
    return ARRAY, struct.pack("<IQ", kind, len(value)) + items


def image(shape: Tiny) -> Image:
    """The tiny model, undamaged."""
    keys = [Key(b"general.architecture", *encoded("llama"))]
    keys += [Key(name.encode(), *encoded(value)) for name, value in shape.metadata().items()]
    tensors = [
        Tensor(name.encode(), list(reversed(tensor.shape)), 0, tensor.tobytes())
        for name, tensor in shape.tensors(seed=1).items()
    ]
    return Image(keys, tensors)


_SIZES = (
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
)
_NUMBERS = (
    "llama.attention.layer_norm_rms_epsilon",
    "llama.rope.freq_base",
    "llama.rope.scaling.factor",
    "llama.rope.scale_linear",
)
_REQUIRED = (*_SIZES[:5], _NUMBERS[0], "general.architecture", "tokenizer.ggml.tokens")
_OFF = {
    "llama.expert_count": (8, 1),
    "llama.attention.sliding_window": (4096, 1),
    "llama.attention.scale": (0.5, math.nan),
    "llama.attention.causal": (False, 0),
    "llama.logit_scale": (0.5, "1"),
    "llama.attention.clamp_kqv": (8.0, math.inf),
    "llama.rope.scaling.type": ("yarn", "longrope", "", 1),
    "llama.rope.dimension_count": (8, 0, -1),
    "llama.attention.value_length": (32, "16"),
    "llama.rope.scaling.attn_factor": (2.0, math.nan),
    "llama.unheard_of": (1, 0.0, "x"),
    "general.architecture": ("gemma2", "", 1, ["llama"]),
    "general.type": ("adapter", 1),
    "general.alignment": (0, 3, 2**31, "32", 32.0, -32),
    "split.count": (3, -1, 10**6, "1", 2.0),
}
_NAMED = {
    "llama.expert_count": "llama.expert_used_count",
    "llama.rope.scaling.type": "llama.rope.scaling.",
}
"""What a refusal names in place of a key: a key that its value asks for and that is missing."""
_BAD_SIZES: tuple[Any, ...] = (
    0, -1, -(2**31), 2**31, 2**40, 2**64 - 1, 2.0, math.nan, "2", "", True, [1, 2], [], ["a"],
)  # fmt: skip
_BAD_NUMBERS: tuple[Any, ...] = (
    0.0, -0.0, -1.0, math.nan, math.inf, -math.inf, 1e-30, 1e30, -5, 0, "1", False, [1.0], [],
)  # fmt: skip


def _bad_size(rng: random.Random, model: Image) -> Mutation:
    return _set(model, rng.choice(_SIZES), rng.choice(_BAD_SIZES))


def _bad_number(rng: random.Random, model: Image) -> Mutation:
    return _set(model, rng.choice(_NUMBERS), rng.choice(_BAD_NUMBERS))


def _other_arithmetic(rng: random.Random, model: Image) -> Mutation:
    key = rng.choice(list(_OFF))
    return _set(model, key, rng.choice(_OFF[key]))


def _set(model: Image, key: str, value: Any) -> Mutation:
    model.put(key, *encoded(value))
    return refused(f"{key} = {value!r}", _NAMED.get(key, key))


def _missing_key(rng: random.Random, model: Image) -> Mutation:
    name = rng.choice(_REQUIRED)
    model.keys = [key for key in model.keys if key.name != name.encode()]
    return refused(f"no {name}", name)


def _repeated_key(rng: random.Random, model: Image) -> Mutation:
    key = rng.choice(model.keys)
    model.keys.insert(rng.randrange(len(model.keys)), dataclasses.replace(key))
    return refused(f"{key.name!r} twice", key.name.decode())


def _other_integer_type(rng: random.Random, model: Image) -> Mutation:
    name = rng.choice(_SIZES)
    key = model.key(name)
    if key is None or key.kind != U32:
        return Mutation("unchanged")
    (value,) = struct.unpack("<I", key.value)
    kind = rng.choice([I32, U64, I64, U16, I16])
    key.kind, key.value = kind, struct.pack("<" + _FORMATS[kind], value)
    return Mutation(f"{name} as type {kind}", Verdict.LOADED)


def _odd_name(rng: random.Random, model: Image) -> Mutation:
    name = rng.choice([b"", b"\xff\xfe", b"a\nb", b"\x1b[2J", b"k" * 70_000, "é".encode()])
    model.keys.insert(0, Key(name, *encoded(1)))
    bad = name == b"\xff\xfe" or len(name) > 65_536
    return Mutation(f"key {name[:20]!r}", Verdict.REFUSED if bad else Verdict.LOADED)


def _wrong_length(rng: random.Random, model: Image) -> Mutation:
    key = model.key(rng.choice(["general.architecture", "tokenizer.ggml.model"]))
    if key is None or key.kind != STRING:
        return Mutation("unchanged")
    length = rng.choice([2**63, 2**64 - 1, 2**32, 10**6])
    key.value = struct.pack("<Q", length) + key.value[8:]
    return refused(f"{key.name!r} of {length} bytes")


def _array_header(rng: random.Random, model: Image) -> Mutation:
    name = rng.choice(["tokenizer.ggml.tokens", "tokenizer.ggml.merges"])
    key = model.key(name)
    if key is None or key.kind != ARRAY:
        return Mutation("unchanged")
    kind, count = struct.unpack("<IQ", key.value[:12])
    if rng.random() < 0.5:
        kind = rng.choice([ARRAY, 13, 99, 2**31])
    else:
        count = rng.choice([2**63, 2**40, 2**24, count + 10**6])
    key.value = struct.pack("<IQ", kind, count) + key.value[12:]
    return refused(f"{name} as an array of {count} of type {kind}")


def _large_array(rng: random.Random, model: Image) -> Mutation:
    kind = rng.choice([U8, I8, F32, U64, BOOL, STRING])
    count = rng.choice([10**5, 10**6])
    if kind == STRING:
        content = string(b"ab") * count
    else:
        content = bytes(count * struct.calcsize(_FORMATS[kind]))
    key = Key(b"general.large", ARRAY, struct.pack("<IQ", kind, count) + content)
    model.keys.insert(rng.randrange(len(model.keys)), key)
    return Mutation(f"array of {count} of type {kind}", Verdict.LOADED)


def _boolean(rng: random.Random, model: Image) -> Mutation:
    model.put("tokenizer.ggml.add_bos_token", BOOL, bytes([rng.randrange(2, 256)]))
    return refused("boolean of another byte", "tokenizer.ggml.add_bos_token")


def _counts(rng: random.Random, model: Image) -> Mutation:
    extra = rng.choice([1, 2, 1000, 2**40, 2**63])
    if rng.random() < 0.5:
        model.extra_tensors = extra
    else:
        model.extra_keys = extra
    return refused(f"counts off by {model.extra_tensors} and {model.extra_keys}")


def _start(rng: random.Random, model: Image) -> Mutation:
    choice = rng.randrange(3)
    if choice == 0:
        model.magic = rng.choice([b"GGML", b"gguf", b"\0\0\0\0", b"FUGG"])
        return refused(f"magic {model.magic!r}")
    if choice == 1:
        model.version = rng.choice([0, 1, 4, 2**31, 2**16])
        return refused(f"version {model.version}")
    model.order = ">"
    return refused("big-endian", "little-endian")


def _tensor_name(rng: random.Random, model: Image) -> Mutation:
    tensor = rng.choice(model.tensors)
    old = tensor.name
    others = [b"", b"\xff", b"a\nb", b"blk.9.ffn_up.weight", b"blk.-1.ffn_up.weight", b"x" * 70_000,
              b"blk.00.ffn_up.weight", b"blk." + b"9" * 5000 + b".ffn_up.weight", old + b".bias",
              old.upper(), rng.choice(model.tensors).name]  # fmt: skip
    tensor.name = rng.choice(others)
    if tensor.name == old:
        return Mutation("unchanged", Verdict.LOADED)
    return refused(f"tensor {old!r} named {tensor.name[:40]!r}")


def _tensor_missing(rng: random.Random, model: Image) -> Mutation:
    tensor = model.tensors.pop(rng.randrange(len(model.tensors)))
    optional = tensor.name in (b"output.weight", b"rope_freqs.weight")
    name = _text(tensor.name)
    return Mutation(f"no {name}", Verdict.LOADED) if optional else refused(f"no {name}", name)


def _tensor_sizes(rng: random.Random, model: Image) -> Mutation:
    tensor = rng.choice(model.tensors)
    old = list(tensor.sizes)
    choices = ([], [0], old[:-1], [*old, 2], old + [1] * 4, [old[0] + 1, *old[1:]], [2**63, 2])
    tensor.sizes = list(rng.choice(choices))
    return refused(f"{_text(tensor.name)} of sizes {tensor.sizes}")


def _tensor_type(rng: random.Random, model: Image) -> Mutation:
    tensor = rng.choice(model.tensors)
    # Integers, float64 and what does not exist; of float32's size or larger.
    tensor.kind = rng.choice([26, 27, 28, 4, 5, 40, 99, 2**31])
    return refused(f"{_text(tensor.name)} of type {tensor.kind}", "tensor ")


def _tensor_offset(rng: random.Random, model: Image) -> Mutation:
    index = rng.randrange(1, len(model.tensors))
    offset = sum(_padded(len(tensor.data)) for tensor in model.tensors[:index])
    before = _padded(len(model.tensors[index - 1].data))
    choices = (offset - before, offset + 1, offset + 8, offset - 32, 2**63, 2**64 - 32, 2**40)
    tensor = model.tensors[index]
    tensor.offset = rng.choice(choices)
    return refused(f"{_text(tensor.name)} at offset {tensor.offset}", "tensor ")


def _tensor_value(rng: random.Random, model: Image) -> Mutation:
    tensor = rng.choice(model.tensors)
    values = np.frombuffer(tensor.data, np.float32).copy()
    value = rng.choice([math.nan, math.inf, -math.inf])
    values[rng.randrange(values.size)] = value
    tensor.data = values.tobytes()
    return refused(f"{value} in {_text(tensor.name)}", "tensor ")


def _rope_factors(rng: random.Random, model: Image) -> Mutation:
    values = np.ones(8, np.float32)
    values[rng.randrange(8)] = value = rng.choice([0.0, -1.0, math.nan, math.inf, 1e-20, 1e-4])
    model.tensors.append(Tensor(b"rope_freqs.weight", [8], 0, values.tobytes()))
    return refused(f"RoPE factor {value}", "rope_freqs.weight")


def _good_rope(rng: random.Random, model: Image) -> Mutation:
    kind = rng.choice(["linear", "none", None])
    if kind is not None:
        model.put("llama.rope.scaling.type", *encoded(kind))
    model.put(rng.choice(_NUMBERS[2:]), *encoded(rng.choice([0.5, 1.0, 8.0])))
    if rng.random() < 0.5:
        values = np.linspace(1, 32, 8, dtype=np.float32)
        model.tensors.append(Tensor(b"rope_freqs.weight", [8], 0, values.tobytes()))
    return Mutation(f"scaling type {kind} with a factor", Verdict.LOADED)


_TOKENIZER: tuple[tuple[str, Any], ...] = (
    ("tokenizer.ggml.model", "llama"),
    ("tokenizer.ggml.model", 1),
    ("tokenizer.ggml.pre", "unheard-of"),
    ("tokenizer.ggml.pre", ["gpt-2"]),
    ("tokenizer.ggml.tokens", []),
    ("tokenizer.ggml.tokens", [1, 2, 3]),
    ("tokenizer.ggml.tokens", "abc"),
    ("tokenizer.ggml.token_type", [1, 2, 3]),
    ("tokenizer.ggml.token_type", "normal"),
    ("tokenizer.ggml.merges", ["a"]),
    ("tokenizer.ggml.merges", ["no such"]),
    ("tokenizer.ggml.merges", [1, 2]),
    ("tokenizer.ggml.merges", 7),
    ("tokenizer.ggml.eos_token_id", 10**6),
    ("tokenizer.ggml.eos_token_id", -1),
    ("tokenizer.ggml.eos_token_id", "<|end|>"),
    ("tokenizer.ggml.eos_token_id", [1]),
    ("tokenizer.ggml.bos_token_id", 2**31),
    ("tokenizer.ggml.add_bos_token", 1),
    ("tokenizer.chat_template", 1),
    ("tokenizer.chat_template", ["a"]),
)


def _tokenizer(rng: random.Random, model: Image) -> Mutation:
    key, value = rng.choice(_TOKENIZER)
    return _set(model, key, value)


_STRUCTURED: tuple[Mutator, ...] = (
    _bad_size, _bad_size, _bad_number, _bad_number, _other_arithmetic, _other_arithmetic,
    _missing_key, _repeated_key, _other_integer_type, _odd_name, _wrong_length, _array_header,
    _large_array, _boolean, _counts, _start, _tensor_name, _tensor_missing, _tensor_sizes,
    _tensor_type, _tensor_offset, _tensor_value, _rope_factors, _good_rope, _tokenizer, _tokenizer,
)  # fmt: skip


def make(rng: random.Random, folder: pathlib.Path) -> Case:
    """Writes a mutated file."""
    path = folder / "model.gguf"
    shape = Tiny(hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1)
    model = image(dataclasses.replace(shape, tied=rng.random() < 0.5))
    if rng.random() < 0.75:
        count = 1 if rng.random() < 0.8 else 2
        mutation = joined([rng.choice(_STRUCTURED)(rng, model) for _ in range(count)])
        path.write_bytes(model.content())
        return Case(path, mutation)
    content = model.content()
    header = len(model.header())
    choice = rng.randrange(4)
    if choice == 0:
        # Up to the last tensor's end: what follows is padding.
        size = rng.choice([rng.randrange(header), rng.randrange(len(content) - 64)])
        path.write_bytes(content[:size])
        return Case(path, refused(f"cut to {size} of {len(content)} bytes"))
    if choice == 1:
        path.write_bytes(content + rng.randbytes(rng.choice([1, 1000])))
        return Case(path, Mutation("more bytes at the end", Verdict.LOADED))
    damaged = bytearray(content)
    places = [rng.randrange(header) for _ in range(rng.randint(1, 8))]
    for place in places:
        damaged[place] = (
            damaged[place] ^ (1 << rng.randrange(8)) if choice == 2 else rng.randrange(256)
        )
    path.write_bytes(damaged)
    return Case(path, Mutation(f"bytes {places} of the header"))
