"""Draws docs/architecture.svg: the package's rooms and which of them import which.

Rooms and arrows are read from the source. An arrow that others imply is left out.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import html
import sys
import textwrap

from scripts.package_imports import PACKAGE, ROOT, imported, is_inside, modules

PICTURE = ROOT / "docs" / "architecture.svg"

COLUMNS = 24

BANDS: tuple[tuple[tuple[str, tuple[str, ...], int, int], ...], ...] = (
    # From the top. A band is a row of boxes; a box has a title, the modules or folders in it, and
    # the columns where it begins and ends.
    (
        ("generate, doctor", ("generate", "fetch_model", "doctor", "console", "__main__"), 0, 5),
        ("serving", ("serving",), 5, 9),
        ("models", ("models",), 9, 13),
        ("profile", ("profile",), 14, 24),
    ),
    (("api, output_head", ("api", "output_head"), 0, 13),),
    (
        ("lowering", ("lowering",), 0, 9),
        ("prefill", ("prefill",), 9, 13),
        (
            "simulator: commands, launch, install",
            ("simulator.launch", "simulator.install", "simulator.commands", "simulator"),
            14,
            24,
        ),
    ),
    (
        ("cpu", ("cpu",), 0, 6),
        ("reference", ("reference",), 6, 13),
        ("simulator/timing", ("simulator.timing",), 14, 19),
        ("simulator/source_check", ("simulator.source_check",), 19, 24),
    ),
    (
        (
            "masks caches rope kinds weights quantize sharding",
            ("masks", "caches", "rope", "kinds", "weights", "quantize", "sharding"),
            0,
            13,
        ),
        ("simulator/ordering", ("simulator.ordering",), 14, 19),
        ("simulator/collectives", ("simulator.collectives",), 19, 24),
    ),
    (
        ("call", ("call", "bits"), 0, 13),
        ("simulator/language", ("simulator.language",), 14, 24),
    ),
    (("simulator/isa", ("simulator.isa",), 14, 24),),
    (
        ("kernels", ("kernels",), 0, 13),
        ("simulator/machine", ("simulator.machine",), 14, 19),
        ("simulator/memory", ("simulator.memory", "simulator.errors", "simulator.caller"), 19, 24),
    ),
    (
        (
            "hardware, limits, installed_nki, user_cache, command_line",
            ("hardware", "limits", "installed_nki", "user_cache", "command_line", "errors"),
            0,
            24,
        ),
    ),
)

DESCRIPTIONS = {
    "generate, doctor": "Commands: a model writes text.",
    "masks caches rope kinds weights quantize sharding": "Helpers of a decode loop.",
    "api, output_head": "transformer_tkg, explain; a model's logits.",
    "hardware, limits, installed_nki, user_cache, command_line": "Trainium's numbers; sizes; "
    "whether AWS's nki is here; the user's cache; how commands end.",
    "simulator: commands, launch, install": "Runs kernels of any module; takes the place of nki.",
}
"""Of boxes that are several modules, or whose module's first sentence is too long."""

# As wide as the text of a page of the site, so that letters have the sizes named here.
WIDTH, BAND_GAP, GAP, MARGIN = 736, 28, 14, 4
TITLE_LINE, TEXT_LINE, PADDING = 15, 14, 7


@dataclasses.dataclass(frozen=True)
class Box:
    """One box of the picture, in pixels."""

    title: str
    members: tuple[str, ...]
    band: int
    left: float
    width: float
    top: float = 0
    height: float = 0


def boxes() -> list[Box]:
    """All boxes with their places. Those of a band are as high as the text of one of them needs."""
    column = (WIDTH - 2 * MARGIN + GAP) / COLUMNS
    placed: list[Box] = []
    top: float = MARGIN
    for band, row in enumerate(BANDS):
        across = [
            Box(
                title,
                tuple(f"{PACKAGE}.{member}" for member in members),
                band,
                MARGIN + start * column,
                (end - start) * column - GAP,
            )
            for title, members, start, end in row
        ]
        height = max(
            2 * PADDING + TITLE_LINE * len(title_lines(box)) + TEXT_LINE * len(text_lines(box))
            for box in across
        )
        placed += [dataclasses.replace(box, top=top, height=height) for box in across]
        top += height + BAND_GAP
    return placed


def title_lines(box: Box) -> list[str]:
    """The title; a folder's parts stand on lines of their own where one has no room."""
    if "/" in box.title and len(box.title) * 7.5 > box.width:
        folder, name = box.title.split("/")
        return [f"{folder}/", name]
    return textwrap.wrap(box.title, int(box.width / 7))


def text_lines(box: Box) -> list[str]:
    """The description in lines that the box has room for."""
    return textwrap.wrap(description(box), int(box.width / 6.2))


def box_of(module: str, all_boxes: list[Box]) -> Box | None:
    """The box of a module: the one with its longest prefix; None for the package's own file."""
    best: tuple[int, Box] | None = None
    for box in all_boxes:
        for member in box.members:
            if module == member or module.startswith(f"{member}."):
                best = max(best or (0, box), (len(member), box), key=lambda pair: pair[0])
    return best[1] if best else None


def edges(all_boxes: list[Box]) -> list[tuple[Box, Box]]:
    """Pairs (importer, imported) of boxes, without those that a longer way implies."""
    direct: dict[Box, set[Box]] = {box: set() for box in all_boxes}
    for module in modules():
        importer = box_of(module, all_boxes)
        for other in imported(module):
            target = box_of(other, all_boxes) if is_inside(other) else None
            if importer is not None and target is not None and target != importer:
                direct[importer].add(target)

    def reachable(start: Box) -> set[Box]:
        seen: set[Box] = set()
        waiting = list(direct[start])
        while waiting:
            box = waiting.pop()
            if box not in seen:
                seen.add(box)
                waiting.extend(direct[box])
        return seen

    return [
        (importer, target)
        for importer, targets in direct.items()
        for target in sorted(targets, key=lambda box: box.title)
        if not any(target in reachable(other) for other in targets - {target})
    ]


def description(box: Box) -> str:
    """The first sentence of the box's module, or what `DESCRIPTIONS` says."""
    if box.title in DESCRIPTIONS:
        return DESCRIPTIONS[box.title]
    documentation = ast.get_docstring(ast.parse(modules()[box.members[0]].read_text())) or ""
    return " ".join(documentation.split("\n\n")[0].split()).replace("`", "")


def picture() -> str:
    """The SVG's text."""
    all_boxes = boxes()
    height = max(box.top + box.height for box in all_boxes) + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        'font-family="Helvetica, Arial, sans-serif" role="img" '
        'aria-label="Rooms of jax_tkg and their imports">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#7a869a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    lines += [_arrow(importer, target) for importer, target in edges(all_boxes)]
    for box in all_boxes:
        lines += _drawn(box)
    return "\n".join([*lines, "</svg>", ""])


def _arrow(importer: Box, target: Box) -> str:
    if importer.band == target.band:
        forward = importer.left < target.left
        x1 = importer.left + (importer.width if forward else 0)
        x2 = target.left + (0 if forward else target.width)
        y = importer.top + min(importer.height, target.height) / 2
        path = f"M{x1:.0f} {y:.0f}L{x2:.0f} {y:.0f}"
    else:
        # Between boxes of different width an arrow is as upright as their overlap allows.
        low = max(importer.left, target.left) + 12
        high = min(importer.left + importer.width, target.left + target.width) - 12
        centers = (importer.left + importer.width / 2, target.left + target.width / 2)
        x1, x2 = ((low + high) / 2,) * 2 if low < high else centers
        y1, y2 = importer.top + importer.height, target.top
        path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + 30:.0f} {x2:.0f} {y2 - 30:.0f} {x2:.0f} {y2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#7a869a" marker-end="url(#arrow)"/>'


def _drawn(box: Box) -> list[str]:
    color = "#fdf3e1" if "simulator" in box.title else "#e8f1fb"
    if box.title == "kernels":
        color = "#e6f5ea"
    middle = box.left + box.width / 2
    lines = [
        f'<rect x="{box.left:.0f}" y="{box.top:.0f}" width="{box.width:.0f}" '
        f'height="{box.height:.0f}" rx="6" fill="{color}" stroke="#5b6b82"/>',
    ]
    baseline = box.top + PADDING - 3
    for line in title_lines(box):
        baseline += TITLE_LINE
        lines.append(
            f'<text x="{middle:.0f}" y="{baseline:.0f}" font-size="12.5" font-weight="bold" '
            f'text-anchor="middle" fill="#1b2a41">{html.escape(line)}</text>'
        )
    for line in text_lines(box):
        baseline += TEXT_LINE
        lines.append(
            f'<text x="{middle:.0f}" y="{baseline:.0f}" font-size="11.5" '
            f'text-anchor="middle" fill="#33415c">{html.escape(line)}</text>'
        )
    return lines


def main() -> int:
    """Writes or checks the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare the picture there is")
    if parser.parse_args().check:
        if not PICTURE.exists() or PICTURE.read_text() != picture():
            print(f"{PICTURE.relative_to(ROOT)} is out of date; run python -m scripts.architecture")
            return 1
        return 0
    PICTURE.write_text(picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
