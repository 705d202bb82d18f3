"""How far `generate` has a model padded, by what runs it."""

from __future__ import annotations

from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized

from jax_tkg.generate import command
from jax_tkg.models import packing
from jax_tkg.models.errors import ModelError
from tests.models import files, tiny


class PaddingTest(parameterized.TestCase):
    @parameterized.parameters(("auto", 64), ("reference", 64), ("simulate", 128))
    def test_hidden_size(self, implementation: str, hidden_multiple: int) -> None:
        path = files.folder(self) / "model.gguf"
        tiny.write_tiny(path, tiny.Tiny(hidden_size=160))
        values = flags.FlagValues()
        command.define_flags(values)
        values(
            [
                "generate",
                f"--model={path}",
                "--prompt=the cat",
                f"--implementation={implementation}",
            ]
        )
        with (
            # It is for the whole process, and so for other tests.
            mock.patch.object(command, "use_compilation_cache"),
            mock.patch.object(packing, "build", side_effect=ModelError("seen")) as build,
            self.assertRaisesRegex(ModelError, "seen"),
        ):
            command.main(values)
        self.assertEqual(build.call_args.kwargs["hidden_multiple"], hidden_multiple)


if __name__ == "__main__":
    absltest.main()
