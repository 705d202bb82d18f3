"""The command that checks kernels for constructs that AWS's compiler rejects.

``python -m jax_tkg.simulator.check_language module:kernel ...``; ``--rules`` prints the rules.
"""

import importlib
import sys
from collections.abc import Sequence

from jax_tkg.simulator.install import install
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
    install()
    found = notes = 0
    for argument in arguments:
        module, name = argument.split(":", 1)
        for finding in check_language(getattr(importlib.import_module(module), name)):
            print(finding)
            found += not finding.is_note
            notes += finding.is_note
    print(f"{found} findings" + (f", {notes} notes" if notes else ""))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
