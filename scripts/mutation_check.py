"""Breaks the source in chosen ways and shows that the tests notice every time.

    python scripts/mutation_check.py [--package] [--jobs N] [NAME ...]

Each mutation is a change of the source, made in a copy of the project in a temporary folder: of the
simulator, or with --package of the rest of the package. The tests must pass on the unchanged copy
and fail on every changed one. Prints a table; the exit status is 1 if a mutation survives without a
reason that the table gives, or no longer applies to the source.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from scripts.mutations.package import PACKAGE
from scripts.mutations.run import run
from scripts.mutations.simulator import SIMULATOR


def main(arguments: list[str]) -> int:
    """Runs the named mutations, or all of a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", action="store_true", help="the package without the simulator")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at a time")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which mutations; all by default")
    flags = parser.parse_args(arguments)
    table = PACKAGE if flags.package else SIMULATOR
    unknown = set(flags.names) - {mutation.name for mutation in table}
    if unknown:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in table if not flags.names or mutation.name in flags.names]
    return run(chosen, flags.jobs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
