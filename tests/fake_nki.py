"""Packages named nki, written to folders that tests put on the path."""

from __future__ import annotations

import pathlib


def write_distribution(folder: pathlib.Path, version: str) -> None:
    """Metadata of an installed distribution named nki, without a module."""
    metadata = folder / f"nki-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: nki\nVersion: {version}\n")


def write_package(folder: pathlib.Path, version: str, source: str = "") -> None:
    """An installed package named nki, with `source` in its __init__.py."""
    write_distribution(folder, version)
    package = folder / "nki"
    package.mkdir()
    (package / "__init__.py").write_text(source)
