"""What a compiled module says about the buffers it copies."""

from __future__ import annotations

import math
import re
from typing import Any

_COPY = re.compile(r"= (?P<dtype>\w+)\[(?P<sizes>[\d,]*)\]\S* (?:copy|copy-start)\(")

_PARAMETER = re.compile(r"= \w+\[(?P<sizes>[\d,]*)\]\S* parameter\(")


def copies_of(compiled: Any, elements: int) -> list[str]:
    """Lines of the optimized HLO that copy an array of at least that many elements.

    Instructions within fusions are lines of the text as any other, so they are found too.
    """
    found = []
    for line in compiled.as_text().splitlines():
        match = _COPY.search(line)
        if match and math.prod(int(size) for size in match["sizes"].split(",") if size) >= elements:
            found.append(line.strip())
    return found


def largest_fusion(compiled: Any, elements: int) -> int:
    """Instructions of the largest fused computation that reads an array of that many elements."""
    largest, count, reads = 0, 0, False
    for line in compiled.as_text().splitlines():
        if not line.startswith((" ", "}")):
            count, reads = 0, False
            in_fusion = "fus" in line.split("(")[0]
        elif in_fusion:
            count += 1
            parameter = _PARAMETER.search(line)
            sizes = parameter["sizes"].split(",") if parameter else []
            reads = reads or math.prod(int(size) for size in sizes if size) >= elements
            if reads:
                largest = max(largest, count)
    return largest
