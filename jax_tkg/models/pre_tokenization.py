"""How byte-level BPE splits text into words, by the names in GGUF files.

A GGUF file holds no pre-tokenizer, only its name (`tokenizer.ggml.pre`). llama.cpp's converter
identifies it by tokenizing a sample text. The patterns are those of the models' `tokenizer.json`.
"""

from __future__ import annotations

import dataclasses

import tokenizers
from tokenizers import normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)


def _uncased(digits: str) -> str:
    """A pattern for words of letters, numbers (`digits`), symbols and white space."""
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


_CL100K = _uncased(r"\p{N}{1,3}")
_QWEN2 = _uncased(r"\p{N}")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_O200K = (
    rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


@dataclasses.dataclass(frozen=True)
class PreTokenization:
    """The steps before BPE.

    Attributes:
      pattern: regular expression of a word, or None for GPT-2's.
      single_digits: whether each digit is split off before the pattern is applied.
      composes: whether text is first normalized to Unicode's composed form, NFC.
      whole_words: whether a word in the vocabulary becomes one token, without merges.
      adds_begin: whether texts begin with the begin token if the file does not say; llama.cpp's
        defaults.
    """

    pattern: str | None = None
    single_digits: bool = False
    composes: bool = False
    whole_words: bool = False
    adds_begin: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Builds the pre-tokenizer, which also writes words in the byte alphabet."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(tokenizers.Regex(self.pattern), "isolated"))
        use_regex = self.pattern is None
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        """Builds the normalizer, or returns None if text is not changed."""
        return normalizers.NFC() if self.composes else None


_STARCODER = PreTokenization(single_digits=True)
_LLAMA3 = PreTokenization(_CL100K, whole_words=True, adds_begin=True)

BY_NAME = {
    "gpt-2": PreTokenization(),
    # SmolLM and SmolLM2
    "smollm": _STARCODER,
    # Granite 3, whose tokenizer is StarCoder's
    "refact": _STARCODER,
    "starcoder": _STARCODER,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    # Llama 3's pattern without whole words: SmolLM3, Smaug
    "smaug-bpe": PreTokenization(_CL100K),
    # Phi-4, Granite 4
    "dbrx": PreTokenization(_CL100K),
    "glm4": PreTokenization(_CL100K),
    "chatglm-bpe": PreTokenization(_CL100K),
    # Qwen2, Qwen2.5, Qwen3; llama.cpp omits NFC, which the models' tokenizer.json has
    "qwen2": PreTokenization(_QWEN2, composes=True),
    # Mistral Nemo, Mistral Small
    "tekken": PreTokenization(_TEKKEN, whole_words=True, adds_begin=True),
    # Phi-4-mini
    "gpt-4o": PreTokenization(_O200K),
}
"""The known pre-tokenizations by `tokenizer.ggml.pre`."""
