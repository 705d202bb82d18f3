"""`python -m jax_tkg.simulator run|profile|check`: a kernel of any module, without JAX."""

import argparse
import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import NoReturn

from jax_tkg.command_line import CommandError, check_output_file, say
from jax_tkg.hardware import TARGET_VARIABLE
from jax_tkg.installed_nki import find_nki
from jax_tkg.simulator import check_language, errors
from jax_tkg.simulator.commands import arguments as kernel_arguments
from jax_tkg.simulator.commands import results
from jax_tkg.simulator.kernel_name import find_kernel
from jax_tkg.simulator.launch import Result, run
from jax_tkg.simulator.machine.machine import Options
from jax_tkg.simulator.timing import timeline_plot
from jax_tkg.simulator.timing.costs import TARGETS
from jax_tkg.simulator.timing.timeline import TENSOR_RATES, schedule
from jax_tkg.simulator.timing.timeline_report import summary, write_trace


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as those of all commands are."""

    def error(self, message: str) -> NoReturn:
        """Raises the complaint.

        Raises:
          CommandError: always.
        """
        raise CommandError(f"{message}; see --help")


def main(arguments: Sequence[str]) -> int:
    """Runs one of the commands.

    Returns:
      0, or 1 where `check` found something.

    Raises:
      CommandError: the arguments are wrong, or the kernel breaks a rule.
    """
    values = _parser().parse_args(arguments)
    command = {"run": _run, "profile": _profile, "check": _check}[values.command]
    return command(values)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m jax_tkg.simulator", description="Runs NKI kernels on a CPU, without JAX."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|profile|check")
    for name, about in (
        ("run", "Run a kernel, and print statistics of what it returns and writes."),
        ("profile", "Run a kernel, and print its modeled timeline on Trainium."),
    ):
        command = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=kernel_arguments.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_run_flags(command)
        if name == "run":
            command.add_argument("--values", action="store_true", help="print elements, shortened")
            command.add_argument("--output", help="write the results to this .npz file")
        else:
            _add_profile_flags(command)
    check = commands.add_parser(
        "check",
        help="Report what AWS's compiler rejects in kernels.",
        description="Reports what AWS's compiler rejects in kernels and in all that they call.",
    )
    check.add_argument("kernels", nargs="*", metavar="module:kernel")
    check.add_argument("--rules", action="store_true", help="print the rules instead")
    return parser


def _add_run_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("kernel", metavar="module:kernel", help="or file.py:kernel")
    command.add_argument("arguments", nargs="*", metavar="name=value", help="see below")
    command.add_argument(
        "--inputs", action="append", default=[], help=".npz file; once, or once for each rank"
    )
    command.add_argument("--ranks", type=int, default=1, help="how many run at once")
    command.add_argument("--lnc", type=int, choices=(1, 2), help="cores of a rank")
    command.add_argument(
        "--target", help=f"trn1, trn2 or trn3; default: {TARGET_VARIABLE}, or else trn2"
    )
    command.add_argument("--seed", type=int, default=0, help="of random inputs")
    for check in ("uninitialized", "races", "capacity", "core_barriers"):
        command.add_argument(
            f"--{check}",
            choices=("error", "report", "ignore"),
            default=getattr(Options(), check),
            help=f"default: {getattr(Options(), check)}",
        )


def _add_profile_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rank", type=int, default=0, help="whose timeline")
    command.add_argument("--lines", type=int, default=10, help="statements of the critical path")
    command.add_argument(
        "--tensor_rate", choices=TENSOR_RATES, default="half", help="of the Tensor Engine's clock"
    )
    command.add_argument(
        "--all_reduce_us", type=float, default=17.5, help="assumed latency of an all-reduce"
    )
    command.add_argument("--trace", help="write a trace for Perfetto to this file")
    command.add_argument("--plot", help="write a picture to this PNG file; needs matplotlib")


def _simulated(values: argparse.Namespace) -> Result:
    if values.ranks < 1:
        raise CommandError(f"--ranks: expected 1 or more, got {values.ranks}")
    found = find_nki()
    if found is not None:
        raise CommandError(
            f"AWS's nki {found.version} is installed in {found.location}, so that `import nki` is "
            "not the simulator: run this in an environment without it"
        )
    kernel = find_kernel(values.kernel)
    given = kernel_arguments.rank_arguments(
        kernel, values.arguments, values.inputs, values.ranks, values.seed
    )
    options = Options(
        record=values.command == "profile",
        uninitialized=values.uninitialized,
        races=values.races,
        capacity=values.capacity,
        core_barriers=values.core_barriers,
    )
    try:
        return run(kernel, given, lnc=values.lnc, target=values.target, options=options)
    except (
        errors.NkiValidationError,
        NotImplementedError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
    ) as error:
        raise CommandError(f"{type(error).__name__}: {error}") from error


def _run(values: argparse.Namespace) -> int:
    if values.output is not None:
        check_output_file("--output", values.output)
    result = _simulated(values)
    for line in results.described(result, values.values):
        say(line)
    if values.output is not None:
        results.write(result, values.output)
        say(f"written: {values.output}")
    return 0


def _profile(values: argparse.Namespace) -> int:
    if values.plot is not None:
        check_output_file("--plot", values.plot, ".png")
        if importlib.util.find_spec("matplotlib") is None:
            raise CommandError(
                "--plot: expected matplotlib to be installed: pip install matplotlib"
            )
    if values.trace is not None:
        check_output_file("--trace", values.trace)
    if not 0 <= values.rank < values.ranks:
        raise CommandError(f"--rank: expected 0..{values.ranks - 1}, got {values.rank}")
    record = _simulated(values).record
    if record.target not in TARGETS:
        raise CommandError(f"--target: expected one of {[*TARGETS]}, got {record.target}")
    costs = dataclasses.replace(
        TARGETS[record.target], all_reduce_latency=values.all_reduce_us * 1e3
    )
    timeline = schedule(record, costs, values.rank, values.tensor_rate)
    say(summary(timeline, lines=values.lines))
    if values.trace is not None:
        write_trace(timeline, values.trace)
        say(f"trace of the modeled launch, for https://ui.perfetto.dev: {values.trace}")
    if values.plot is not None:
        title = f"{values.kernel} on {record.target}, modeled (rank {values.rank}, core 0)"
        timeline_plot.write_plot(timeline, title, values.plot)
        say(f"picture of the modeled launch: {values.plot}")
    return 0


def _check(values: argparse.Namespace) -> int:
    if not values.rules and not values.kernels:
        raise CommandError("expected module:kernel, got none; see --help")
    return check_language.main(["--rules"] if values.rules else values.kernels)
