"""The tiny vocabulary as the files of a tokenizer in a folder, as transformers writes them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from tests.models import tiny


def write(folder: pathlib.Path, begins: bool = False, **described: Any) -> tokenizers.Tokenizer:
    """Writes `tokenizer.json` and `tokenizer_config.json`.

    Args:
      folder: where to write them.
      begins: whether every text begins with the user's token.
      described: members of `tokenizer_config.json` in place of or besides eos_token and
        chat_template; one that is None is left out.
    """
    vocabulary = {token: index for index, token in enumerate(tiny.VOCABULARY)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(tiny.MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tiny.END, tiny.USER, tiny.ASSISTANT])
    backend.add_tokens([tiny.WHOLE])
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tiny.USER} $A", special_tokens=[(tiny.USER, vocabulary[tiny.USER])]
        )
    backend.save(str(folder / "tokenizer.json"))
    described = {
        "eos_token": {"content": tiny.END},
        "chat_template": tiny.CHAT_TEMPLATE,
        **described,
    }
    kept = {name: value for name, value in described.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return backend
