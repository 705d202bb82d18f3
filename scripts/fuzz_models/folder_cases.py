"""Mutated folders of safetensors with their configuration, index and tokenizer."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import random
import struct
from typing import Any

from scripts.fuzz_models.case import Case, Mutation, Mutator, Verdict, joined, refused
from tests.models import tiny_folder, tokenizer_files
from tests.models.tiny import END, VOCABULARY, Tiny

CONFIG, GENERATION, DESCRIPTION, TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
OUTSIDE = "outside"
"""The folder beside the model's that holds what must not be read."""

_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
_NUMBERS = ("rms_norm_eps", "rope_theta")
_REQUIRED = (*_SIZES[:4], "vocab_size", "max_position_embeddings", "rms_norm_eps", "model_type")
_BAD_SIZES: tuple[Any, ...] = (
    0, -1, 2**31, 10**30, 2.0, math.nan, "2", "", True, False, [2], {}, {"a": 1}, [],
)  # fmt: skip
_BAD_NUMBERS: tuple[Any, ...] = (
    0, -1, 0.0, math.nan, math.inf, -math.inf, 1e-30, 1e30, 10**400, "1", "", True, [1.0], {},
)  # fmt: skip
_OTHER: dict[str, tuple[Any, ...]] = {
    "model_type": ("mistral", 1, ["llama"], {}, "\ud800"),
    "architectures": (["LlamaForSequenceClassification"], "LlamaForCausalLM", [1], {}),
    "hidden_act": ("quick_gelu", 1, [], True),
    "attention_bias": (True, 0, "no", [False]),
    "mlp_bias": (True, 0.0),
    "tie_word_embeddings": ("yes", 1, [], {}),
    "quantization_config": ({"quant_method": "awq"}, [], "gptq"),
    "sliding_window": (4096, "none"),
    "partial_rotary_factor": (0.5, "1"),
    "rope_interleaved": (True, 1),
    "attn_logit_softcapping": (50.0, "on"),
    "use_qk_norm": (True, [1]),
    "layer_types": (["sliding_attention"], "full_attention", [1]),
}
_ROPE: tuple[Any, ...] = (
    True, "linear", [], [1], 2.0,
    {"type": "yarn", "factor": 0}, {"rope_type": 1}, {"rope_type": None, "factor": 2.0},
    {"type": "linear"}, {"type": "linear", "factor": 0}, {"type": "linear", "factor": -1.0},
    {"type": "linear", "factor": math.nan}, {"type": "linear", "factor": "2"},
    {"type": "linear", "factor": [2.0]}, {"type": "linear", "factor": 2.0, "beta_fast": 32},
    {"type": "llama3", "factor": 8.0}, {"type": "linear", "rope_type": "llama3", "factor": 2.0},
    {"full_attention": {"rope_type": "default"}}, {"rope_theta": 0}, {"rope_theta": "1"},
    {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 32},
    {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 0},
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1.5, math.nan, "", "x", "é\n", [], {}, [None], {"a": []}, [[[1]]],
)  # fmt: skip


@dataclasses.dataclass
class Image:
    """A written model's folder."""

    path: pathlib.Path
    files: int

    def json(self, name: str) -> Any:
        """A file's content; an empty object where it is absent."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else {}

    def write_json(self, name: str, content: Any) -> None:
        """Replaces a file's content."""
        self._fresh(name).write_text(json.dumps(content))

    def write(self, name: str, content: bytes) -> None:
        """Replaces a file's content."""
        self._fresh(name).write_bytes(content)

    def _fresh(self, name: str) -> pathlib.Path:
        """The path of a file; what an earlier mutation put there is removed first."""
        path = self.path / name
        if path.is_symlink() or path.is_fifo():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
        return path

    @property
    def tensor_files(self) -> list[pathlib.Path]:
        """The files of tensors."""
        return sorted(self.path.glob("model*.safetensors"))

    @property
    def outside(self) -> pathlib.Path:
        """The folder that must not be read."""
        return self.path.parent / OUTSIDE


def _set(model: Image, name: str, key: str, value: Any) -> Mutation:
    content = model.json(name)
    content[key] = value
    model.write_json(name, content)
    return refused(f"{name}: {key} = {value!r}"[:200], key)


def _bad_size(rng: random.Random, model: Image) -> Mutation:
    return _set(model, CONFIG, rng.choice(_SIZES), rng.choice(_BAD_SIZES))


def _bad_number(rng: random.Random, model: Image) -> Mutation:
    return _set(model, CONFIG, rng.choice(_NUMBERS), rng.choice(_BAD_NUMBERS))


def _other_key(rng: random.Random, model: Image) -> Mutation:
    key = rng.choice(list(_OTHER))
    return _set(model, CONFIG, key, rng.choice(_OTHER[key]))


def _rope(rng: random.Random, model: Image) -> Mutation:
    name = rng.choice(["rope_scaling", "rope_parameters"])
    return _set(model, CONFIG, name, rng.choice(_ROPE))


def _good_rope(rng: random.Random, model: Image) -> Mutation:
    rope = rng.choice(
        [{}, {"type": "default"}, {"type": "linear", "factor": 4}, {"rope_theta": 500.0}]
    )
    names = rng.sample(["rope_scaling", "rope_parameters"], rng.randint(1, 2))
    for name in names:
        _set(model, CONFIG, name, rope)
    return Mutation(f"{names} = {rope}", Verdict.LOADED)


def _missing_key(rng: random.Random, model: Image) -> Mutation:
    key = rng.choice(_REQUIRED)
    content = model.json(CONFIG)
    if rng.random() < 0.5:
        content[key] = None
    else:
        content.pop(key, None)
    model.write_json(CONFIG, content)
    return refused(f"{CONFIG}: no {key}", key)


def _stop_tokens(rng: random.Random, model: Image) -> Mutation:
    value = rng.choice([-1, len(VOCABULARY), 2**40, "1", [1, "2"], [[1]], True, 1.0, {"a": 1}])
    return _set(model, GENERATION, "eos_token_id", value)


def _described(rng: random.Random, model: Image) -> Mutation:
    key, value = rng.choice(
        [
            ("eos_token", rng.choice([1, [END], {"text": END}, {"content": 1}, 1.5])),
            ("chat_template", rng.choice([1, {"a": "b"}, [1], [{"name": "default"}], 1.5])),
            ("bos_token", rng.choice([1, [1], {"content": None}])),
        ]
    )
    return _set(model, DESCRIPTION, key, value)


def _text(rng: random.Random, model: Image) -> Mutation:
    """A JSON file whose text is no JSON object."""
    names = [CONFIG, GENERATION, DESCRIPTION, TOKENIZER]
    name = rng.choice(names + ([tiny_folder.INDEX] if model.files > 1 else []))
    whole = (model.path / name).read_bytes() if (model.path / name).is_file() else b'{"a": 1}'
    content = rng.choice(
        [
            b"",
            b"[]",
            b"null",
            b'"text"',
            whole[: rng.randrange(len(whole) - 1)] if len(whole) > 1 else b"",
            b"\xff\xfe" + whole,
            b'{"a": "' + b"\xe9" + b'"}',
            b"\xef\xbb\xbf" + whole,
            b"[" * 200_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            b'{"a": ' + b"9" * 10_000 + b"}",
            whole + b"}",
            b"\0" * 100,
        ]
    )
    model.write(name, content)
    return refused(f"{name} holds {content[:20]!r}, {len(content)} bytes", name)


def _random_value(rng: random.Random, model: Image) -> Mutation:
    """Any value of a JSON file in place of another."""
    name = rng.choice([CONFIG, DESCRIPTION, TOKENIZER, TOKENIZER])
    content = model.json(name)
    node, trail = content, [name]
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(keys)
        trail.append(str(key))
        if rng.random() < 0.4 or not isinstance(node[key], dict | list):
            node[key] = rng.choice(_VALUES)
            break
        node = node[key]
    model.write_json(name, content)
    return Mutation(f"another value at {trail}"[:200])


def _index(rng: random.Random, model: Image) -> Mutation:
    content = model.json(tiny_folder.INDEX)
    if model.files == 1 or not isinstance(content, dict) or not content.get("weight_map"):
        return Mutation("unchanged")
    tensor = rng.choice(list(content["weight_map"]))
    choices = (1, None, [], {}, True, "", ".", "..", "absent.safetensors", "a\0b", "x" * 5000,
               "\ud800", "../outside/model.safetensors", "inner/../../outside/model.safetensors",
               str(model.outside / "model.safetensors"), "link.safetensors", "/dev/zero",
               "config.json", "/etc/passwd")  # fmt: skip
    value = rng.choice(choices)
    if value == "link.safetensors":
        link = model.path / value
        link.unlink(missing_ok=True)
        link.symlink_to(model.outside / "model.safetensors")
    content["weight_map"][tensor] = value
    model.write_json(tiny_folder.INDEX, content)
    return refused(f"index: {tensor} in {value!r}"[:200])


def _index_shape(rng: random.Random, model: Image) -> Mutation:
    if model.files == 1:
        return Mutation("unchanged")
    value = rng.choice([None, [], {}, 1, "model.safetensors", ["a"], {"a": 1}])
    return _set(model, tiny_folder.INDEX, "weight_map", value)


def _place(rng: random.Random, model: Image) -> Mutation:
    """Something else in the place of a file."""
    names = [CONFIG, TOKENIZER, model.tensor_files[0].name, DESCRIPTION, GENERATION]
    name = rng.choice(names)
    path = model.path / name
    kind = rng.choice(["absent", "folder", "pipe", "outside", "circle", "nothing", "zero", "huge"])
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "outside":
        (model.outside / name).write_text("{}")
        path.symlink_to(model.outside / name)
    elif kind == "circle":
        path.symlink_to(name)
    elif kind == "nothing":
        path.symlink_to("nothing")
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    if kind == "absent" and name in (DESCRIPTION, GENERATION):
        return Mutation(f"{name}: {kind}")
    return refused(f"{name}: {kind}", name)


def _tensor_header(rng: random.Random, model: Image) -> Mutation:
    """A file of tensors whose header is another."""
    path = rng.choice(model.tensor_files)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    choices: list[tuple[str, Any]] = [
        ("dtype", rng.choice(["F8_E4M3", "F8_E5M2", "I32", "U32", "F64", "F16", "X", 1, None])),
        ("shape", rng.choice([[], [0], [-1], [2**62, 2**62], [size // 4, 1], "x", [1.5], None])),
        ("data_offsets", rng.choice([[0, 1], [size, 0], [-4, size - 4], [0], "x", [2**62] * 2])),
    ]
    key, value = rng.choice(choices)
    if entry.get(key) == value:
        return Mutation("unchanged")
    entry[key] = value
    text = json.dumps(header).encode()
    model.write(path.name, struct.pack("<Q", len(text)) + text + data)
    return refused(f"{path.name}: {name}: {key} = {value!r}")


def _tensor_bytes(rng: random.Random, model: Image) -> Mutation:
    path = rng.choice(model.tensor_files)
    content = bytearray(path.read_bytes())
    choice = rng.randrange(4)
    if choice == 0:
        size = rng.choice([0, 7, 8, rng.randrange(len(content))])
        model.write(path.name, bytes(content[:size]))
        return refused(f"{path.name} cut to {size} of {len(content)} bytes", path.name)
    if choice == 1:
        length = rng.choice([0, 1, 2**63, 2**64 - 1, 10**9, len(content)])
        model.write(path.name, struct.pack("<Q", length) + bytes(content[8:]))
        return refused(f"{path.name}: header of {length} bytes", path.name)
    if choice == 2:
        (length,) = struct.unpack("<Q", content[:8])
        places = [rng.randrange(8 + length) for _ in range(rng.randint(1, 4))]
        for place in places:
            content[place] ^= 1 << rng.randrange(8)
        model.write(path.name, bytes(content))
        return Mutation(f"{path.name}: bits of bytes {places} of the header")
    value = rng.choice([math.nan, math.inf, -math.inf])
    # The last four bytes are the last element of the last tensor.
    model.write(path.name, bytes(content[:-4]) + struct.pack("<f", value))
    return refused(f"{path.name}: {value} at the end", path.name)


_STRUCTURED: tuple[Mutator, ...] = (
    _bad_size, _bad_size, _bad_number, _bad_number, _other_key, _other_key, _rope, _rope,
    _good_rope, _missing_key, _stop_tokens, _described, _text, _text, _random_value, _random_value,
    _index, _index, _index_shape, _place, _place, _tensor_header, _tensor_header, _tensor_bytes,
    _tensor_bytes,
)  # fmt: skip


def write(folder: pathlib.Path, files: int = 1, tied: bool = True) -> Image:
    """Writes the tiny model, undamaged."""
    path = folder / "model"
    path.mkdir()
    (folder / OUTSIDE).mkdir()
    shape = Tiny(hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1, tied=tied)
    tiny_folder.write(path, shape, files)
    tokenizer_files.write(path)
    (path / GENERATION).write_text(json.dumps({"eos_token_id": [1, 2]}))
    return Image(path, files)


def make(rng: random.Random, folder: pathlib.Path) -> Case:
    """Writes a mutated folder."""
    model = write(folder, rng.choice([1, 1, 3]), rng.random() < 0.5)
    # What the index may lead to is a whole file, so that only its place is wrong.
    (model.outside / "model.safetensors").write_bytes(model.tensor_files[0].read_bytes())
    # A second mutation would read what the first one damaged.
    return Case(model.path, joined([rng.choice(_STRUCTURED)(rng, model)]))
