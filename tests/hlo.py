"""What a compiled module says about the buffers it copies."""

from __future__ import annotations

import math
import re
from typing import Any

_COPY = re.compile(r"= (?P<dtype>\w+)\[(?P<sizes>[\d,]*)\]\S* (?:copy|copy-start)\(")


def copies_of(compiled: Any, elements: int) -> list[str]:
    """Lines of the optimised HLO that copy an array of at least that many elements.

    Instructions within fusions are lines of the text as any other, so they are found too.
    """
    found = []
    for line in compiled.as_text().splitlines():
        match = _COPY.search(line)
        if match and math.prod(int(size) for size in match["sizes"].split(",") if size) >= elements:
            found.append(line.strip())
    return found


def largest_fusion(compiled: Any) -> int:
    """Instructions of the largest fused computation of the optimised HLO."""
    largest, count, in_fusion = 0, 0, False
    for line in compiled.as_text().splitlines():
        if not line.startswith((" ", "}")):
            count, in_fusion = 0, "fus" in line.split("(")[0]
        elif in_fusion:
            count += 1
            largest = max(largest, count)
    return largest
