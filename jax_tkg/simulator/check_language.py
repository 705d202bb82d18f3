"""The command that checks kernels for constructs that AWS's compiler rejects.

``python -m jax_tkg.simulator check module:kernel ...``; ``--rules`` prints the rules. The name
``python -m jax_tkg.simulator.check_language`` does the same.
"""

import sys
from collections.abc import Sequence

from jax_tkg import command_line
from jax_tkg.simulator.kernel_name import find_kernel
from jax_tkg.simulator.source_check.findings import check_language
from jax_tkg.simulator.source_check.language_rules import PAGE_HEADER, rules_table


def main(arguments: Sequence[str]) -> int:
    """Checks the kernels named "module:function", and prints what it finds.

    Returns:
      0 where nothing but notes was found, 1 where something else was, 2 for arguments that name no
      kernel.
    """
    if list(arguments) == ["--rules"]:
        print(PAGE_HEADER + rules_table(), end="")
        return 0
    if not arguments or any(":" not in argument for argument in arguments):
        print("usage: python -m jax_tkg.simulator.check_language MODULE:KERNEL ... | --rules")
        return 2
    found = notes = 0
    for argument in arguments:
        for finding in check_language(find_kernel(argument)):
            command_line.say(str(finding))
            found += not finding.is_note
            notes += finding.is_note
    command_line.say(f"{found} findings" + (f", {notes} notes" if notes else ""))
    return 1 if found else 0


if __name__ == "__main__":
    command_line.exit_after(lambda: main(sys.argv[1:]))
