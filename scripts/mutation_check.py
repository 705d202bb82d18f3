"""Breaks the source in chosen ways and shows that the tests notice every time.

    python scripts/mutation_check.py [--package] [--make_test] [--sample N] [--jobs N] [NAME ...]

Each mutation is a change of the source, made in a copy of the project in a temporary folder: of the
simulator, or with --package of the rest of the package. The tests must pass on the unchanged copy
and fail on every changed one; with --make_test those of them that `make test` runs, without which
all run. --sample takes some mutations of the table, the same ones each time. Prints a table; the
exit status is 1 if a mutation survives without a reason that the table gives, or no longer applies
to the source.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from scripts.mutations.package import PACKAGE
from scripts.mutations.run import MAKE_TEST, run
from scripts.mutations.simulator import SIMULATOR


def main(arguments: list[str]) -> int:
    """Runs the named mutations, or all of a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", action="store_true", help="the package without the simulator")
    parser.add_argument("--make_test", action="store_true", help="only tests that make test runs")
    parser.add_argument("--sample", type=int, help="how many of the table, chosen at random")
    parser.add_argument("--jobs", type=int, default=1, help="how many run at a time")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which mutations; all by default")
    flags = parser.parse_args(arguments)
    table = PACKAGE if flags.package else SIMULATOR
    unknown = set(flags.names) - {mutation.name for mutation in table}
    if unknown:
        parser.error(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = [mutation for mutation in table if not flags.names or mutation.name in flags.names]
    if flags.sample is not None:
        chosen = random.Random(0).sample(chosen, min(flags.sample, len(chosen)))
    return run(chosen, flags.jobs, MAKE_TEST if flags.make_test else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
