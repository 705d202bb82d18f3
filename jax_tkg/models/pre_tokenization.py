"""How byte-level BPE splits text into words, by the names that GGUF files give.

A GGUF file holds no pre-tokenizer, only a name for it (`tokenizer.ggml.pre`), which llama.cpp's
converter finds by comparing how a tokenizer splits a sample. The patterns are those of the models'
own `tokenizer.json`.
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
    """Words of letters with one other character before them, numbers, symbols, and spaces."""
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
    """What a name stands for.

    Attributes:
      pattern: of a word; None for that of GPT-2.
      single_digits: whether every digit is a word of its own, before the pattern is applied.
      composes: whether text is brought into Unicode's composed form (NFC) first.
      whole_words: whether a word that is in the vocabulary is taken whole, without merges.
      adds_begin: whether texts begin with the begin token where the file does not say, as llama.cpp
        has it.
    """

    pattern: str | None = None
    single_digits: bool = False
    composes: bool = False
    whole_words: bool = False
    adds_begin: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer, which writes words in the byte alphabet."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(tokenizers.Regex(self.pattern), "isolated"))
        use_regex = self.pattern is None
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        """What is done to text before it is split; None for nothing."""
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
    # Llama 3's words without its rule for whole ones: SmolLM3, Smaug
    "smaug-bpe": PreTokenization(_CL100K),
    # Phi-4, Granite 4
    "dbrx": PreTokenization(_CL100K),
    "glm4": PreTokenization(_CL100K),
    "chatglm-bpe": PreTokenization(_CL100K),
    # Qwen2, Qwen2.5, Qwen3; llama.cpp leaves out the composition, which the model's own has
    "qwen2": PreTokenization(_QWEN2, composes=True),
    # Mistral Nemo, Mistral Small
    "tekken": PreTokenization(_TEKKEN, whole_words=True, adds_begin=True),
    # Phi-4-mini
    "gpt-4o": PreTokenization(_O200K),
}
"""The pre-tokenizations that are known, by `tokenizer.ggml.pre`."""
