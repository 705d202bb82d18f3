"""Opens one case as `python -m jax_tkg.generate` would, and finds what is wrong with the result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import resource
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from jax_tkg.models import chat, checkpoint, safetensors
from jax_tkg.models.config import ModelConfig
from jax_tkg.models.errors import ModelError
from jax_tkg.models.packing import PackedModel
from scripts.fuzz_models.case import Case, Verdict

MAX_SECONDS = 10.0
"""Longest time that a case may take."""

TEMPLATE_SECONDS = 4
"""Longest time that a chat template may take here: less than in use, to leave time for the rest."""

MAX_GROWTH = 2**30
"""Bytes by which the process may grow over a case; the models have a megabyte."""

_MESSAGE = re.compile(r"expected .*, (got|but) ")
_MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
      result: "loaded", the refusal's message, or the traceback of another exception.
      faults: what should not be; empty where all is well.
      seconds: how long it took.
    """

    result: str
    faults: tuple[str, ...]
    seconds: float


def judge(case: Case, folder: pathlib.Path, load: Callable[[pathlib.Path], None]) -> Outcome:
    """Loads a case and checks what must hold whatever was done to it.

    Args:
      case: what to load.
      folder: outside of which no file may be read.
      load: loads and uses the model at a path; `load_model`, but for tests of this module.
    """
    faults: list[str] = []
    memory = _peak_bytes()
    start = time.monotonic()
    with _opened_files() as opened, warnings.catch_warnings():
        # NumPy's warnings go to stderr, where a refusal is one line.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            load(case.path)
            result = "loaded"
        except ModelError as error:
            result = str(error)
            faults += _message_faults(result, case)
        # Whatever else comes out is a traceback for the user, panics of Rust among them.
        except BaseException as error:
            result = "".join(traceback.format_exception(error))
            faults.append(f"traceback of {type(error).__name__}")
            if isinstance(error, KeyboardInterrupt):
                raise
    seconds = time.monotonic() - start
    if seconds > MAX_SECONDS:
        faults.append(f"took {seconds:.1f} s")
    if (growth := _peak_bytes() - memory) > MAX_GROWTH:
        faults.append(f"grew by {growth >> 20} MiB")
    if result == "loaded" and case.mutation.verdict is Verdict.REFUSED:
        faults.append("accepted")
    if result != "loaded" and case.mutation.verdict is Verdict.LOADED:
        faults.append("refused")
    faults += [f"opened {path}" for path in opened if not _may_open(path, folder)]
    return Outcome(result, tuple(faults), seconds)


def load_model(path: pathlib.Path) -> None:
    """Opens a model, loads its weights and uses its tokenizer and template.

    Raises:
      ModelError: the model cannot be used.
      AssertionError: it was accepted with numbers out of their range.
    """
    opened = checkpoint.open_checkpoint(path)
    _check_config(opened.config)
    model: PackedModel = opened.load("float32")
    for array in jax.tree.leaves(model.parameters):
        assert np.isfinite(array).all(), "a weight that is not finite"
    tokenizer, size = opened.tokenizer, opened.config.vocabulary_size
    assert tokenizer.stop_tokens, "nowhere to stop"
    assert all(0 <= token < size for token in tokenizer.stop_tokens), tokenizer.stop_tokens
    text = "the cat"
    if tokenizer.chat_template is not None:
        with mock.patch.object(chat, "MAX_SECONDS", TEMPLATE_SECONDS):
            text = tokenizer.chat_template.prompt(_MESSAGES)
    tokenizer.decode(tokenizer.encode(text[:10_000]))
    tokenizer.decode(range(min(size, 300)))


def _check_config(config: ModelConfig) -> None:
    """The ranges of a model's numbers, written down once more."""
    sizes = [config.num_layers, config.hidden_size, config.intermediate_size, config.num_heads,
             config.num_kv_heads, config.vocabulary_size, config.context_length]  # fmt: skip
    assert all(type(size) is int and 0 < size <= 2**24 for size in sizes), sizes
    assert config.num_heads % config.num_kv_heads == 0, config
    assert 2 <= config.head_size <= 256, config
    assert config.head_size % 2 == 0, config
    assert 0 < config.rms_norm_eps <= 1, config
    for kind in config.kinds:
        frequencies = kind.rope.head_frequencies(config.head_size)
        assert frequencies.shape == (config.head_size // 2,), config
        # The first pair turns by one radian per position, divided by what scales it; features that
        # RoPE leaves alone do not turn.
        assert np.isfinite(frequencies).all(), config
        assert (frequencies >= 0).all(), config
        assert (frequencies <= 1000).all(), config


def _message_faults(message: str, case: Case) -> list[str]:
    faults = []
    if "\n" in message or not message.isprintable() or len(message) > 1000:
        faults.append("the message is not one line")
    if not message.startswith(str(case.path)):
        faults.append("the message does not begin with the file")
    if not _MESSAGE.search(message):
        faults.append("the message does not tell what was expected and what came")
    if case.mutation.mentions not in message:
        faults.append(f"the message does not mention {case.mutation.mentions!r}")
    return faults


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_recorders: list[list[str]] = []


def _record_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _recorders and isinstance(arguments[0], str | bytes):
        _recorders[-1].append(os.fsdecode(arguments[0]))


_hooks: list[Any] = []


@contextlib.contextmanager
def _opened_files() -> Iterator[list[str]]:
    """The paths of files that Python code opens, and those given to safetensors's Rust code."""
    if not _hooks:
        # A hook can be added only, so that one serves all cases.
        _hooks.append(_record_opening)
        sys.addaudithook(_record_opening)
    opened: list[str] = []
    safe_open = safetensors.safetensors.safe_open

    def recording(path: Any, **options: Any) -> Any:
        opened.append(os.fspath(path))
        return safe_open(path, **options)

    _recorders.append(opened)
    try:
        with mock.patch.object(safetensors.safetensors, "safe_open", recording):
            yield opened
    finally:
        _recorders.pop()


_CODE = tuple(
    str(pathlib.Path(path).resolve())
    for path in {*sysconfig.get_paths().values(), sys.base_prefix, sys.prefix, *sys.path}
    if path and pathlib.Path(path).is_absolute()
)
_SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom")


def _may_open(path: str, folder: pathlib.Path) -> bool:
    """Whether a file is the model's, or code that Python imports."""
    real = os.path.realpath(path)
    if pathlib.Path(real).is_relative_to(folder.resolve()):
        return True
    return real.startswith(_SYSTEM) or any(real.startswith(code) for code in _CODE)
