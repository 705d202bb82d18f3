"""A llama-architecture model writes text through `transformer_tkg`.

python -m jax_tkg.generate --prompt "What is the capital of France?"
python -m jax_tkg.generate --requests requests.jsonl > answers.jsonl
python -m jax_tkg.generate          # on a terminal: talk to the model; Ctrl-D ends
"""

from __future__ import annotations

import sys

from absl import flags

from jax_tkg.generate import processes
from jax_tkg.generate.command_flags import define_flags
from jax_tkg.generate.compilation_cache import use_compilation_cache
from jax_tkg.generate.conversation_command import hold_conversation
from jax_tkg.generate.prompts_command import answer_prompts
from jax_tkg.generate.requests_command import answer_requests
from jax_tkg.lowering.host_call import own_exceptions

__all__ = ["define_flags", "main"]


def main(values: flags.FlagValues) -> None:
    """Writes the answers to standard output and the rates to standard error.

    Raises:
      CommandError: a flag has a value that cannot be used.
      ModelError: the model cannot be used.
    """
    use_compilation_cache(values.compilation_cache, processes.count(values))
    # An interrupt of the simulator ends the command as one outside of it does.
    with own_exceptions(), processes.joined(values):
        _generate(values)


def _generate(values: flags.FlagValues) -> None:
    if values.requests is not None:
        answer_requests(values)
    elif not values.prompt and sys.stdin is not None and sys.stdin.isatty():
        hold_conversation(values)
    else:
        answer_prompts(values)
