"""`jax-tkg doctor`: what is installed here, what a call lowers to, and what to do next.

It needs no extra, and says so itself where JAX is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jax_tkg import command_line
from jax_tkg.hardware import TARGET_VARIABLE, target_named
from jax_tkg.installed_nki import FRONT_END_VARIABLE, FRONT_ENDS, find_nki, nki_problem

if TYPE_CHECKING:
    from jax_tkg.lowering.choice import Choice

NEEDED = {"jax": (0, 9, 0), "ml_dtypes": (0, 5), "numpy": (1, 26), "threadpoolctl": (3, 5)}
"""The packages that jax_tkg depends on, and the oldest version of each."""

EXTRAS = {
    "models": ("absl", "filelock", "gguf", "jinja2", "rich", "safetensors", "tokenizers"),
    "profile": ("absl", "matplotlib"),
}
"""The names under which the packages of each extra are imported."""


@dataclasses.dataclass
class Report:
    """What was found.

    Attributes:
      lines: by heading.
      problems: what keeps a call from running as it should, with what to do.
      hints: what else can be done.
    """

    lines: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    hints: list[str] = dataclasses.field(default_factory=list)

    def add(self, heading: str, line: str) -> None:
        """Adds a line under a heading."""
        self.lines.setdefault(heading, []).append(line)


def main(arguments: Sequence[str]) -> int:
    """Prints the report.

    Returns:
      0, or 1 where there is a problem.
    """
    parser = argparse.ArgumentParser(prog="jax-tkg doctor", description=__doc__)
    parser.parse_args(arguments)
    report = examine()
    for heading, lines in report.lines.items():
        command_line.say(f"{heading}:")
        for line in lines:
            command_line.say(f"  {line}")
    command_line.say("next:")
    for problem in report.problems:
        command_line.say(f"  problem: {problem}")
    for hint in report.hints:
        command_line.say(f"  {hint}")
    if not report.problems:
        command_line.say("  no problem found")
    return 1 if report.problems else 0


def examine() -> Report:
    """Looks at this machine and this environment."""
    report = Report()
    _packages(report)
    _extras(report)
    _settings(report)
    if importlib.util.find_spec("jax") is not None:
        _lowering(report)
    _model(report)
    return report


def _packages(report: Report) -> None:
    heading = "installed"
    report.add(heading, f"python {platform.python_version()}")
    for name, oldest in NEEDED.items():
        version, needed = _version(name), ".".join(map(str, oldest))
        report.add(heading, f"{name} {version or 'is not installed'}")
        if version is None:
            report.problems.append(f'{name} is not installed: pip install "{name}>={needed}"')
        elif _numbers(version) < oldest:
            report.problems.append(f'{name} {version} is too old: pip install "{name}>={needed}"')
    for name in ("jaxlib", "libneuronxla"):
        report.add(heading, f"{name} {_version(name) or 'is not installed'}")
    nki, problem = find_nki(), nki_problem()
    where = f"nki {nki.version} in {nki.location}" if nki is not None else "nki is not used"
    report.add(heading, where if problem is None else f"{where}: {problem}")


def _extras(report: Report) -> None:
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        state = f"lacks {', '.join(missing)}" if missing else "complete"
        report.add("installed", f"extra {extra!r}: {state}")
        if missing:
            report.hints.append(
                f"for jax-tkg {'generate' if extra == 'models' else extra}: "
                f'pip install "jax_tkg[{extra}]"'
            )


def _settings(report: Report) -> None:
    cores = os.environ.get("NEURON_LOGICAL_NC_CONFIG")
    front_end = os.environ.get(FRONT_END_VARIABLE)
    for name, unset in (
        ("NEURON_LOGICAL_NC_CONFIG", "2 cores for each logical core"),
        (FRONT_END_VARIABLE, "nki's own choice"),
        (TARGET_VARIABLE, "trn2"),
        ("JAX_TKG_KERNELS", "~/.cache/jax_tkg/kernels"),
        ("JAX_TKG_MODELS", ".cache/models"),
    ):
        value = os.environ.get(name)
        report.add("environment", f"{name}={value}" if value else f"{name} is not set: {unset}")
    if cores and cores not in ("1", "2"):
        report.problems.append(f"NEURON_LOGICAL_NC_CONFIG: expected 1 or 2, got {cores!r}")
    if front_end and front_end not in FRONT_ENDS:
        report.problems.append(
            f"{FRONT_END_VARIABLE}: expected one of {', '.join(FRONT_ENDS)}, got {front_end!r}"
        )
    _expect(report, lambda: target_named(None))


def _lowering(report: Report) -> None:
    """What a small call lowers to on each platform."""
    import jax

    from jax_tkg.lowering import kernel_entry

    try:
        here = jax.default_backend()
    except RuntimeError as error:
        report.problems.append(f"JAX finds no device: {' '.join(str(error).split())}")
        return
    for name in dict.fromkeys((here, "cpu", "neuron")):
        try:
            count = len(jax.devices(name))
            devices = f"{count} device{'s' if count > 1 else ''}"
        except RuntimeError:
            devices = "no device here"
        choice = _choice(name)
        default = ", the default" if name == here else ""
        report.add(
            "a call lowers to",
            f"{name} ({devices}{default}): {choice.implementation!r}; {choice.reason}",
        )
        if devices != "no device here" and name == "neuron" and choice.implementation != "nki":
            report.problems.append(f"the Neuron kernel is not used: {choice.reason}")
    if here == "neuron" or os.environ.get(kernel_entry.DIRECTORY_VARIABLE):
        _expect(report, kernel_entry.check_directory)
    if here != "neuron":
        report.hints.append(
            "to run the Neuron kernel in the simulator: implementation='simulate'; to read its "
            "program: jax_tkg.dry_run"
        )


def _choice(name: str) -> Choice:
    """What a small call lowers to on a platform."""
    import jax
    import jax.numpy as jnp

    from jax_tkg import api

    H, d, slots = 128, 64, 128

    def shape(*sizes: int, dtype: object = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    arguments = {
        "X": shape(1, 1, H),
        "W_qkvs": [shape(H, 3 * d)],
        "W_outs": [shape(d, H)],
        "W_gates": [shape(H, H)],
        "W_ups": [shape(H, H)],
        "W_downs": [shape(H, H)],
        "W_gamma_qkvs": [shape(1, H)],
        "W_gamma_mlps": [shape(1, H)],
        "K_caches": [shape(1, 1, d, slots)],
        "V_caches": [shape(1, 1, slots, d)],
        "RoPE_cos": shape(d // 2, 1, 1),
        "RoPE_sin": shape(d // 2, 1, 1),
        "mask_cache": shape(slots, 1, 1, 1, dtype=jnp.bool_),
        "mask_active": shape(1, 1, 1, 1, dtype=jnp.bool_),
        "position_ids": shape(1, 1, dtype=jnp.int32),
    }
    chosen = []

    def call(arguments: dict) -> None:
        chosen.append(api.explain(**arguments, num_layers=1, platform=name))

    jax.eval_shape(call, arguments)
    return chosen[0]


def _model(report: Report) -> None:
    from jax_tkg.models.default_model import default_model
    from jax_tkg.models.errors import ModelError

    try:
        report.add("model", f"jax-tkg generate uses {default_model()}")
    except ModelError as error:
        report.add("model", str(error))
        report.hints.append("for the model of the demo: jax-tkg fetch-model")


def _expect(report: Report, check: Callable[[], object]) -> None:
    """Adds the problem that a check raises."""
    try:
        check()
    except (ValueError, OSError) as error:
        report.problems.append(" ".join(str(error).split()))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found.group().split(".")) if found else ()


if __name__ == "__main__":
    import sys

    command_line.exit_after(lambda: main(sys.argv[1:]))
