"""The language checker on AWS's library, which AWS compiles: it finds next to nothing there."""

from __future__ import annotations

import pathlib
import types
from typing import Any

from absl.testing import absltest

from jax_tkg.simulator.source_check.findings import Finding, check_language
from jax_tkg.simulator.source_check.source import unwrap
from tests.nkilib import library

library.require()

STRICT = {"identity", "raw-enum"}
"""Refused by the release notes of 0.3.0; the library has hundreds, so the compiler only warns."""

FOUND = {
    # Harmless: what is read before the statement is there either way.
    ("early-attribute", "moe_cte/bwmm_shard_on_I.py", "`block_hidden_states[0].dtype`"),
    # In code that does not run: logging at debug level, and an option that is off.
    ("early-attribute", "utils/tree_logger.py", "`logs[j].depth`"),
    (
        "tile-assignment",
        "moe_cte/moe_cte_mx_utils.py",
        "`dst[0:_pmax, h_tile_idx, b_tile_idx, :_pmax]`",
    ),
}


def _kernels() -> dict[str, Any]:
    """Every kernel of every module that is no PyTorch reference."""
    root = library.package_folder()
    found = {}
    for path in sorted(root.rglob("*.py")):
        if path.stem == "__init__" or "torch" in path.stem:
            continue
        module = library.module(".".join(path.relative_to(root).with_suffix("").parts))
        for name, value in vars(module).items():
            function = unwrap(value)
            own = getattr(function, "__module__", None) == module.__name__
            if own and isinstance(function, types.FunctionType) and function is not value:
                found[f"{module.__name__}.{name}"] = value
    return found


class LibraryTest(absltest.TestCase):
    def test_findings(self) -> None:
        kernels = _kernels()
        self.assertGreater(len(kernels), 50)
        findings: set[Finding] = set()
        for kernel in kernels.values():
            findings.update(check_language(kernel))
        found = {
            (finding.rule.name, "/".join(pathlib.Path(finding.file).parts[-2:]), finding.found)
            for finding in findings
            if not finding.is_note and finding.rule.name not in STRICT
        }
        self.assertEqual(found, FOUND)


if __name__ == "__main__":
    absltest.main()
