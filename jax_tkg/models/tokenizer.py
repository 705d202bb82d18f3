"""The tokenizer and chat template inside a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jax_tkg.models.errors import ModelError
from jax_tkg.models.gguf import GgufFile

_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of tokens that are never text; from the GGUF specification."""
_USER_DEFINED_TOKEN = 4
"""`tokenizer.ggml.token_type` of tokens matched whole before any other."""

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text into words, from its published tokenizer."""


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    if name in ("gpt-2", "gpt2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if name in ("llama-bpe", "llama3", "llama-v3"):
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return None


class Tokenizer:
    """Byte-level BPE with special tokens, built from a GGUF file's metadata.

    Attributes:
      stop_tokens: ids that end a text.
    """

    def __init__(self, file: GgufFile):
        """Reads the tokenizer of a GGUF file.

        Args:
          file: an open file.

        Raises:
          ModelError: no byte-level BPE, an unknown pre-tokenizer, or missing metadata.
        """
        kind = file.field("tokenizer.ggml.model")
        if kind != "gpt2":
            raise ModelError(
                f"{file.path}: tokenizer.ggml.model: expected 'gpt2' (byte-level BPE), got {kind!r}"
            )
        name = file.field("tokenizer.ggml.pre", "default")
        pre_tokenizer = _pre_tokenizer(name)
        if pre_tokenizer is None:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.pre: expected one of default, gpt-2, llama-bpe, "
                f"smollm, got {name!r}"
            )
        tokens = file.field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ", 1)) for merge in file.field("tokenizer.ggml.merges")]
        self._tokenizer = tokenizers.Tokenizer(
            models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=merges,
                ignore_merges=name.startswith("llama"),
            )
        )
        self._tokenizer.pre_tokenizer = pre_tokenizer
        self._tokenizer.decoder = decoders.ByteLevel()
        types = file.field("tokenizer.ggml.token_type", [1] * len(tokens))
        kinds = list(zip(tokens, types, strict=True))
        self._tokenizer.add_special_tokens(
            [_whole(token, special=True) for token, kind in kinds if kind == _CONTROL_TOKEN]
        )
        self._tokenizer.add_tokens(
            [_whole(token, special=False) for token, kind in kinds if kind == _USER_DEFINED_TOKEN]
        )
        self._begin = file.field("tokenizer.ggml.bos_token_id", None)
        self._add_begin = bool(file.field("tokenizer.ggml.add_bos_token", False))
        end = file.field("tokenizer.ggml.eos_token_id")
        turn_end = file.field("tokenizer.ggml.eot_token_id", end)
        self.stop_tokens: tuple[int, ...] = tuple(sorted({int(end), int(turn_end)}))
        self._chat_template = file.field("tokenizer.chat_template", None)
        self._path = file.path
        self._names = {"bos_token": self._name(tokens, self._begin), "eos_token": tokens[end]}

    @staticmethod
    def _name(tokens: Sequence[str], index: int | None) -> str:
        return "" if index is None else tokens[index]

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was made to be spoken to in turns."""
        return self._chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it are recognised."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._add_begin and self._begin is not None and ids[:1] != [self._begin]:
            ids = [self._begin, *ids]
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TokenStream:
        """A decoder that takes tokens one at a time."""
        return TokenStream(self._tokenizer)

    def chat_prompt(self, message: str, system: str | None = None) -> str:
        """The text that asks the model to answer a message.

        Args:
          message: what the user says.
          system: instructions before it, or None for the template's own.

        Raises:
          ModelError: the file has no chat template, or the template cannot be rendered.
        """
        if self._chat_template is None:
            raise ModelError(f"{self._path}: tokenizer.chat_template is missing: use --nochat")
        messages = [{"role": "user", "content": message}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        try:
            template = environment.from_string(self._chat_template)
            return template.render(messages=messages, add_generation_prompt=True, **self._names)
        except jinja2.TemplateError as error:
            raise ModelError(f"{self._path}: tokenizer.chat_template: {error}") from error


def _whole(token: str, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False, special=special)


class TokenStream:
    """Text of tokens as they come; a character is held back until all its bytes are there."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._stream = decoders.DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def step(self, token: int) -> str:
        """The text that became complete with this token; may be empty."""
        text = self._stream.step(self._tokenizer, token)
        self._pending = [*self._pending, token] if text is None else []
        return text or ""

    def finish(self) -> str:
        """What is left at the end: bytes that form no character come out as U+FFFD."""
        text = self._tokenizer.decode(self._pending, skip_special_tokens=True)
        self._pending = []
        return text
