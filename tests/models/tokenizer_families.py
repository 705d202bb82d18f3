"""Small tokenizers in the configurations that model families ship, in both kinds of files.

Each is trained here, has the normalizer, pre-tokenizer, decoder and special tokens of its family's
`tokenizer.json`, and is written as a folder and as llama.cpp's converter lays out a GGUF file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.models import family_templates

CORPUS = (
    "The quick brown fox jumps over the lazy dog's 12 friends; it's 2024, and they're done.",
    "def total(values):\n    return sum(v for v in values)  # 3.14\n\n\nclass Thing:\n\tpass\n",
    "I'LL say THE WORDS again: HTTPServer, camelCase, snake_case, a/b\n/c, 1,234,567 and 100000.",
    "Größe, naïve façade, Ångström; приложение и слова; 東京の天気は晴れです。 안녕하세요",
    "مرحبا بالعالم, שלום עולם, नमस्ते दुनिया, e\u0301 o\u0308, family 👩‍👩‍👧 🎉 €5",
    "    indented        further                words\n\n   so  the the the and and of of to to",
) * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACE = "\u2581"
Kind = gguf.TokenType


@dataclasses.dataclass(frozen=True)
class Family:
    """A tokenizer and what its files say beside it.

    Attributes:
      backend: the tokenizer as its `tokenizer.json` has it.
      described: `tokenizer_config.json`.
      metadata: what the GGUF file says, names without `tokenizer.ggml.`; the vocabulary is added.
      architecture: of the GGUF file.
      specials: texts of special tokens, for the texts of tests.
    """

    backend: tokenizers.Tokenizer
    described: dict[str, Any]
    metadata: dict[str, Any]
    architecture: str
    specials: tuple[str, ...]

    def write(self, folder: pathlib.Path, template: str, form: str) -> pathlib.Path:
        """Writes the folder's files and `model.gguf` in it, whose path is returned.

        Args:
          folder: where to write them.
          template: the chat template.
          form: how the folder holds it: a "file", a "string" or a "list".
        """
        self.backend.save(str(folder / "tokenizer.json"))
        described = {"tokenizer_class": "PreTrainedTokenizerFast", **self.described}
        if form == "file":
            (folder / "chat_template.jinja").write_text(template)
        else:
            named = [{"name": "default", "template": template}, {"name": "rag", "template": "-"}]
            described["chat_template"] = template if form == "string" else named
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
        path = folder / "model.gguf"
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_chat_template(template)
        for name, value in {**self._vocabulary(), **self.metadata}.items():
            key = f"tokenizer.ggml.{name}"
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    def _vocabulary(self) -> dict[str, Any]:
        """Tokens, types and scores or merges as llama.cpp's converter writes them."""
        ids = self.backend.get_vocab()
        tokens = sorted(ids, key=ids.__getitem__)
        model = json.loads(self.backend.to_str())["model"]
        byte_level = self.metadata["model"] == "gpt2"
        types = [Kind.NORMAL] * len(tokens)
        scores = [-float(index) for index in range(len(tokens))]
        for index, token in enumerate(tokens):
            if not byte_level and len(token) == 6 and token.startswith("<0x"):
                types[index], scores[index] = Kind.BYTE, 0.0
        for index, added in self.backend.get_added_tokens_decoder().items():
            scores[index] = -1000.0
            looks_special = added.content.startswith("<|") or added.content.endswith("|>")
            if added.special or looks_special:
                types[index] = Kind.CONTROL
            else:
                types[index] = Kind.USER_DEFINED
                tokens[index] = added.content.replace(SPACE, " ")
        # A model's vocabulary is filled up to a rounder size.
        tokens += [f"[PAD{len(tokens) + extra}]" for extra in range(3)]
        types += [Kind.UNUSED] * 3
        vocabulary = {"tokens": tokens, "token_type": [int(kind) for kind in types]}
        if byte_level:
            return vocabulary | {"merges": [" ".join(pair) for pair in model["merges"]]}
        types[ids["<unk>"]] = Kind.UNKNOWN
        vocabulary["token_type"] = [int(kind) for kind in types]
        return vocabulary | {"scores": scores + [-10000.0] * 3, "pre": "default"}


def merges_of(ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, in the order of the pieces they make."""
    pairs = []
    for left in ids:
        for right in ids:
            if (made := ids.get(left + right)) is not None:
                pairs.append((made, -len(left), left, right))
    return [(left, right) for _, _, left, right in sorted(pairs)]


def _byte_level(
    pre: str,
    specials: tuple[str, ...],
    pattern: str | None = None,
    digits: bool = False,
    added: tuple[str, ...] = (),
    begin: tuple[str, ...] = (),
    normalizer: normalizers.Normalizer | None = None,
    removed: bool = False,
    strip: bool = False,
    architecture: str = "llama",
    bos: str | None = None,
    described: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **options: Any,
) -> Family:
    """A byte-level BPE family; `begin` are the tokens of its post-processor."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern is not None:
        regex = tokenizers.Regex(pattern)
        steps.append(pre_tokenizers.Split(regex, "removed" if removed else "isolated", removed))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(CORPUS, trainer)
    state = json.loads(backend.to_str())
    state["model"].update(options)
    if options.get("ignore_merges"):
        # A word that no merge makes, which is what the option is for.
        state["model"]["vocab"]["Ġfriends"] = max(state["model"]["vocab"].values()) + 1
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(text, normalized=False, special=True, lstrip=strip, rstrip=strip)
            for text in specials
        ]
    )
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])
    processor: Any = processors.ByteLevel(trim_offsets=False)
    if begin:
        template = processors.TemplateProcessing(
            single=" ".join((*begin, "$A")),
            special_tokens=[(text, backend.token_to_id(text)) for text in begin],
        )
        processor = processors.Sequence([processor, template])
    backend.post_processor = processor
    first = bos or (begin[0] if begin else None)
    named = {} if first is None else {"bos_token_id": backend.token_to_id(first)}
    return Family(
        backend,
        {"eos_token": specials[-1], "bos_token": first, **(described or {})},
        {
            "model": "gpt2",
            "pre": pre,
            "eos_token_id": backend.token_to_id(specials[-1]),
            **named,
            **(metadata or {}),
        },
        architecture,
        specials + added,
    )


def _sentence_piece(
    specials: tuple[str, ...],
    prefix: str | None,
    added: tuple[str, ...] = (),
    strip: tuple[str, ...] = (),
    architecture: str = "llama",
    begins: bool = True,
) -> Family:
    """A SentencePiece BPE family; `prefix` is "always" (Llama 2), "first" (Mistral) or None."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", SPACE)
    trained.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=450, show_progress=False, min_frequency=2)
    trained.train_from_iterator(CORPUS, trainer)
    learned = trained.get_vocab()
    # SentencePiece has the single characters last, with the lowest scores.
    learned_order = sorted(learned, key=lambda piece: (len(piece) == 1, learned[piece]))
    pieces = [piece for piece in learned_order if len(piece) > 1 or ord(piece) < 0x3000]
    head = ["<unk>", *specials]
    spaces = [text for text in added if not text.strip(SPACE)]
    before = [*head, *added, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {text: index for index, text in enumerate(dict.fromkeys([*before, *pieces]))}
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of({text: vocabulary[text] for text in (*spaces, *pieces)}),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replaced = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "always":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replaced])
    elif prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    else:
        backend.normalizer = replaced
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    if prefix is not None:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(text, normalized=False, special=True, rstrip=text in strip)
            for text in head
        ]
    )
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], vocabulary[specials[0]])]
        )
    return Family(
        backend,
        {
            "bos_token": specials[0],
            "eos_token": specials[1],
            "unk_token": "<unk>",
        },
        {
            "model": "llama",
            "bos_token_id": vocabulary[specials[0]],
            "eos_token_id": vocabulary[specials[1]],
            "add_bos_token": begins,
            "add_eos_token": False,
            "add_space_prefix": prefix is not None,
        },
        architecture,
        specials + added,
    )


_IM = ("<|im_start|>", "<|endoftext|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_PHI3 = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")

FAMILIES: dict[str, Callable[[], Family]] = {
    "llama3": lambda: _byte_level(
        "llama-bpe", _HEADERS, LLAMA3, begin=_HEADERS[:1], ignore_merges=True
    ),
    "smollm3": lambda: _byte_level(
        "smaug-bpe", _IM, LLAMA3, added=("<think>", "</think>"), metadata={"add_bos_token": False}
    ),
    "qwen2": lambda: _byte_level(
        "qwen2",
        _IM,
        QWEN2,
        added=("<tool_call>", "</tool_call>", "<think>"),
        normalizer=normalizers.NFC(),
        described={"add_bos_token": False},
        architecture="qwen2",
    ),
    "nemo": lambda: _byte_level(
        "tekken",
        ("<s>", "[INST]", "[/INST]", "</s>"),
        TEKKEN,
        begin=("<s>",),
        ignore_merges=True,
        metadata={"add_bos_token": True},
    ),
    "granite": lambda: _byte_level(
        "refact",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        digits=True,
        bos="<|end_of_text|>",
        described={"add_bos_token": False},
        metadata={"add_bos_token": False},
        architecture="granite",
    ),
    "smollm": lambda: _byte_level("smollm", _IM, digits=True, bos="<|im_start|>"),
    "phi4": lambda: _byte_level(
        "dbrx", (*_IM, "<|im_sep|>", "<|im_end|>"), LLAMA3, removed=True, strip=True,
        bos="<|endoftext|>", architecture="phi3",
    ),
    "phi4_mini": lambda: _byte_level(
        "gpt-4o", (*_PHI3, "<|endoftext|>"), O200K, bos="<|endoftext|>", architecture="phi3"
    ),
    "glm4": lambda: _byte_level(
        "glm4",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"),
        LLAMA3,
        bos="[gMASK]",
        architecture="glm4",
    ),
    "llama2": lambda: _sentence_piece(("<s>", "</s>"), "always"),
    "mistral_v3": lambda: _sentence_piece(("<s>", "</s>", "[INST]", "[/INST]"), "first"),
    "phi3": lambda: _sentence_piece(
        ("<s>", "</s>", "<|endoftext|>", *_PHI3),
        "always",
        strip=("</s>", *_PHI3),
        architecture="phi3",
        begins=False,
    ),
    "gemma": lambda: _sentence_piece(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        None,
        added=(
            *("\n" * count for count in range(1, 9)),
            *(SPACE * count for count in range(2, 32)),
            "<table>",
            "<h1>",
            "</s>",
        ),
        architecture="gemma2",
    ),
}  # fmt: skip


FORMS = ("file", "string", "list")


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Writes the files of a family, with its chat template in one of the forms that there are."""
    form = FORMS[list(FAMILIES).index(name) % len(FORMS)]
    return family(name).write(folder, family_templates.BY_FAMILY[name], form)


@functools.cache
def family(name: str) -> Family:
    """One of `FAMILIES`, trained once."""
    return FAMILIES[name]()


def texts(specials: tuple[str, ...], count: int) -> list[str]:
    """Odd texts: runs of white space, digits, marks, scripts, code and special tokens."""
    parts = (
        *(
            "the",
            " The",
            "quick brown",
            " friends",
            "I'll",
            "THEY'RE",
            "HTTPServer",
            "camelCase",
            " x",
        ),
        *(" ", "  ", "   ", " " * 8, " " * 17, " " * 40, "\t", "\n", "\n\n\n", "\r\n", " \n "),
        *("0", "12", "345", "6789", "1234567", "3.14", "½", "٣٤", "Ⅷ"),
        *("é", "e\u0301", "o\u0308\u0301", "Å", "ﬁ", "नमस्ते", "각", "\u1100\u1161"),
        *("東京の天気", "。", "مرحبا", "שלום", "\u202e", "안녕", "приложение"),
        *("👩‍👩‍👧", "🎉", "🏳️‍🌈", "\U0001f1e9\U0001f1ea", "€", "\u2581", "\u2581\u2581", "\ufeff"),
        *("def f(x):\n\treturn x", "{}", "a/b\n/c", "!!!\n\n", "<0x0A>", "'s", "``", "\\n", "\x00"),
        *specials,
        *specials,
    )
    draw = np.random.default_rng(7)
    drawn = ["".join(draw.choice(parts, draw.integers(1, 9))) for _ in range(count - 2)]
    return ["", " ", *drawn]
