"""The report on an installation, and the commands under one name."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import re
import tomllib
from unittest import mock

from absl.testing import absltest, parameterized

from jax_tkg import console, doctor
from jax_tkg.command_line import CommandError
from tests import commands
from tests.models import files

PROJECT = tomllib.loads(pathlib.Path(__file__).parents[1].joinpath("pyproject.toml").read_text())[
    "project"
]


class DoctorTest(parameterized.TestCase):
    def test_this_machine(self) -> None:
        with mock.patch.dict(os.environ):
            for name in ("NEURON_LOGICAL_NC_CONFIG", "NKI_COMPILER_FRONTEND"):
                os.environ.pop(name, None)
            report = doctor.examine()
        self.assertEqual(report.problems, [])
        self.assertIn(f"jax {importlib.metadata.version('jax')}", report.lines["installed"])
        cpu, neuron = report.lines["a call lowers to"]
        self.assertRegex(cpu, r"^cpu \(\d+ devices?, the default\): 'cpu'; ")
        self.assertRegex(neuron, r"^neuron \(no device here\): 'reference'; .*nki")

    @parameterized.parameters(
        ("NEURON_LOGICAL_NC_CONFIG", "3", "expected 1 or 2, got '3'"),
        (
            "NKI_COMPILER_FRONTEND",
            "tracker",
            "expected one of parser, tracer, custom, got 'tracker'",
        ),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn9", "target 'trn9' is unknown"),
    )
    def test_wrong_settings(self, name: str, value: str, message: str) -> None:
        report = doctor.Report()
        with mock.patch.dict(os.environ, {name: value}):
            doctor._settings(report)
        self.assertLen(report.problems, 1)
        self.assertIn(message, report.problems[0])

    @parameterized.parameters(("0.8.9", ["jax 0.8.9 is too old"]), ("0.10.2", []))
    def test_versions(self, version: str, problems: list[str]) -> None:
        report = doctor.Report()
        others = dict.fromkeys(doctor.NEEDED, "999") | {"jax": version}
        with mock.patch.object(doctor, "_version", others.get):
            doctor._packages(report)
        self.assertEqual([each.partition(":")[0] for each in report.problems], problems)

    def test_plain_installation_without_jax(self) -> None:
        hidden = commands.without(
            str(files.folder(self)), ["jax", "absl", "tokenizers", "gguf", "matplotlib"]
        )
        done = commands.run("jax_tkg", "doctor", **hidden)
        self.assertEqual(done.stderr, b"")
        text = done.stdout.decode()
        self.assertIn("extra 'models': lacks absl, gguf, tokenizers", text)
        self.assertIn('for jax-tkg generate: pip install "jax_tkg[models]"', text)

    def test_what_is_needed_is_what_is_declared(self) -> None:
        declared = dict(each.split(">=") for each in PROJECT["dependencies"])
        needed = {name: ".".join(map(str, oldest)) for name, oldest in doctor.NEEDED.items()}
        self.assertEqual(needed, declared)
        for extra, modules in doctor.EXTRAS.items():
            packages = [re.split(">=", each)[0] for each in PROJECT["optional-dependencies"][extra]]
            imported = ["absl" if package == "absl-py" else package for package in packages]
            self.assertEqual(list(modules), imported)


class ConsoleTest(parameterized.TestCase):
    def test_it_is_declared(self) -> None:
        self.assertEqual(PROJECT["scripts"], {"jax-tkg": "jax_tkg.console:run"})

    def test_unknown(self) -> None:
        with self.assertRaisesRegex(CommandError, "expected a command, generate, .*, got 'sing'"):
            console.main(["sing"])

    def test_help_names_every_command(self) -> None:
        with mock.patch.object(console.command_line, "say") as said:
            self.assertEqual(console.main([]), 0)
        for name in ("generate", "profile", "check", "doctor", "fetch-model"):
            self.assertRegex(said.call_args[0][0], rf"\n  {name} +[A-Z]")

    @parameterized.parameters("generate", "profile", "doctor", "fetch-model", "check")
    def test_help_of_a_command(self, name: str) -> None:
        with mock.patch.object(console.command_line, "say") as said:
            try:
                console.main([name, "--help"])
            except SystemExit as ended:
                self.assertEqual(ended.code, 0)
                return
        self.assertNotEmpty(said.call_args[0][0])


if __name__ == "__main__":
    absltest.main()
