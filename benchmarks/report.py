"""Tables on the terminal, and the same figures as JSON."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib

RESULTS = pathlib.Path(__file__).parent / "results"
"""Where JSON and Markdown go; git ignores the JSON."""

_LOAD_BEFORE = os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """What a reader has to know of the machine to make sense of its figures."""
    return {
        "processor": _processor(),
        "load_average_at_start": _LOAD_BEFORE,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def print_load() -> None:
    """Says so where the machine is not quiet: figures are then worth less."""
    if _LOAD_BEFORE > 0.5:
        print(f"load average {_LOAD_BEFORE:.1f} at the start: others work here too, so times vary")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows that have the same keys; None is a dash."""
    if not rows:
        return
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, ["-" * width for width in widths], *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_markdown(name: str, heading: str, rows: Sequence[dict[str, Any]]) -> pathlib.Path:
    """Writes `results/<name>.md`: a table of rows that have the same keys; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine().items())
    lines = [f"# {heading}", "", f"{_now()}; {about}.", ""]
    for cells in [list(rows[0]), ["--:"] * len(rows[0]), *(map(_cell, r.values()) for r in rows)]:
        lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_json(name: str, content: dict[str, Any]) -> pathlib.Path:
    """Writes `results/<name>.json` with the machine and the time; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"time": _now(), "machine": machine(), **content}, indent=2) + "\n")
    return path


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
