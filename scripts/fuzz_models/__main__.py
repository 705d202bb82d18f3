"""Command line of the fuzz run: prints each fault as it is found, and a table at the end."""

from __future__ import annotations

import argparse
import collections
import sys

from scripts.fuzz_models.run import run


def main() -> int:
    """Runs the command; returns 1 where a case has faults."""
    parser = argparse.ArgumentParser(prog="python -m scripts.fuzz_models", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many cases to run")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    flags = parser.parse_args()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest = 0.0
    for result in run(flags.count, flags.seed, flags.first):
        outcome = result.outcome
        counts[result.kind, "cases"] += 1
        counts[result.kind, "loaded" if outcome.result == "loaded" else "refused"] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.faults:
            counts[result.kind, "with faults"] += 1
        if outcome.faults or flags.verbose:
            print(f"{result.index} {result.kind}: {result.mutation}")
            print(f"    {', '.join(outcome.faults) or 'as it must be'}: {outcome.result}")
    columns = ("cases", "loaded", "refused", "with faults")
    print(f"{'':10}" + "".join(f"{column:>13}" for column in columns))
    for kind in sorted({kind for kind, _ in counts}):
        print(f"{kind:10}" + "".join(f"{counts[kind, column]:13}" for column in columns))
    print(f"slowest case: {slowest:.1f} s")
    return 1 if any(column == "with faults" for _, column in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
