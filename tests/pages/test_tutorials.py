"""The Python of the site's pages runs as it stands, in order, and means what the pages say."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from jax_tkg.caches import allocate_caches
from jax_tkg.models.decode import Decoder
from tests import commands
from tests.models import files, tiny, tiny_folder, tokenizer_files
from tests.pages import markdown

TUTORIALS = markdown.DOCS / "tutorials"

ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/operation.md": "tests/test_readme.py",
    "docs/serving.md": "tests/test_serving_page.py",
    "docs/simulator.md": "tests/simulator/test_documentation.py",
}
"""Pages with Python that other tests run."""


@pytest.mark.thorough
class TutorialsTest(absltest.TestCase):
    def test_quickstart(self) -> None:
        names = markdown.run(markdown.DOCS / "quickstart.md")
        np.testing.assert_allclose(
            names["simulated"].hidden, names["out"].hidden, rtol=1e-4, atol=1e-4
        )

    def test_decode_step(self) -> None:
        names = markdown.run(TUTORIALS / "decode_step.md")
        self.assertLess(names["difference"], 1e-4)
        self.assertGreater(np.abs(names["forward"](names["p"], names["texts"])).max(), 1)

    def test_tensor_parallel(self) -> None:
        names = markdown.run(TUTORIALS / "tensor_parallel.md")
        self.assertLess(names["difference"], 1e-4)
        shapes = {
            name: array.sharding.shard_shape(array.shape)
            for name, array in names["placed"][0].items()
        }
        self.assertEqual(shapes["W_qkvs"], (2, 256, 256))
        self.assertEqual(shapes["W_downs"], (2, 256, 256))

    def test_float8(self) -> None:
        names = markdown.run(TUTORIALS / "float8.md")
        self.assertBetween(float(names["error"]), 1e-3, 0.05)
        self.assertEqual(names["size"]["bfloat16"], 2 * names["size"]["float8"])
        self.assertLessEqual(float(jnp.abs(names["for_trainium2"].astype(jnp.float32)).max()), 240)

    @pytest.mark.extended
    def test_token_trees(self) -> None:
        names = markdown.run(TUTORIALS / "token_trees.md")
        expected = np.concatenate(names["expected"], axis=1)
        np.testing.assert_allclose(names["found"], expected, rtol=1e-4, atol=1e-4)
        end = names["end"]
        for tree, plain in ((names["K_tree"], names["K"]), (names["V_tree"], names["V"])):
            slots = np.moveaxis(tree, -1 if tree is names["K_tree"] else -2, 0)
            others = np.moveaxis(plain, -1 if plain is names["K"] else -2, 0)
            np.testing.assert_allclose(slots[:end], others[:end], rtol=1e-4, atol=1e-4)
            self.assertGreater(np.abs(slots[:end]).min(axis=0).max(), 0)

    @pytest.mark.extended
    def test_trainium(self) -> None:
        names = markdown.run(TUTORIALS / "trainium.md")
        self.assertIn("AwsNeuronCustomNativeKernel", names["program"])
        self.assertLess(names["error"], 0.02)

    def _write_model(self) -> None:
        """A small my-model in the working directory."""
        path = files.folder(self) / "my-model"
        path.mkdir()
        tiny_folder.write(path, tiny.Tiny())
        tokenizer_files.write(path)
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(path.parent)

    @pytest.mark.extended
    def test_requests(self) -> None:
        """Each answer is that of `Decoder` with the request alone."""
        self._write_model()
        names = markdown.run(TUTORIALS / "requests.md")
        model, tokenizer, texts = (names[name] for name in ("model", "tokenizer", "texts"))
        self.assertLen(names["answers"], 5)
        decoder = Decoder(model, 128, stop_tokens=tokenizer.stop_tokens)
        for text, tokens in zip(texts, names["answers"].values(), strict=True):
            (row,) = decoder.generate(decoder.start([tokenizer.encode(text)]), 16)
            self.assertEqual(tokens, row[row >= 0].tolist())
        self.assertBetween(len(names["drawn"]), 1, 16)

    @pytest.mark.extended
    def test_generate_text(self) -> None:
        self._write_model()
        names = markdown.run(TUTORIALS / "generate_text.md")
        self.assertGreater(len(names["tokens"]), 0)
        self.assertLen(names["texts"], 2)
        self.assertIn(tiny.VOCABULARY.index(tiny.ASSISTANT), names["prompt"])
        self.assertGreater(len(names["split_tokens"]), 0)

    def test_cpu_page(self) -> None:
        matrix, gain = jnp.ones((1, 128, 128), jnp.bfloat16), jnp.ones((1, 1, 128))
        matrices = dict.fromkeys(("W_qkvs", "W_outs", "W_gates", "W_ups", "W_downs"), matrix)
        caches = allocate_caches(1, B=1, k=1, d=64, S_max=128, dtype=jnp.bfloat16)
        names = markdown.run(
            markdown.DOCS / "cpu.md",
            jax=jax,
            weights=matrices | {"W_gamma_qkvs": gain, "W_gamma_mlps": gain},
            K_caches=caches[0],
            V_caches=caches[1],
        )
        leaves = jax.tree.leaves((names["weights"].W_gates, names["K_caches"], names["V_caches"]))
        self.assertEqual({leaf.dtype for leaf in leaves}, {jnp.dtype(jnp.uint16)})

    @pytest.mark.extended
    def test_processes(self) -> None:
        program = files.folder(self) / "several.py"
        (code,) = markdown.blocks(TUTORIALS / "processes.md", "python")
        program.write_text(code)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
        environment = commands.environment(COORDINATOR=coordinator, PROCESSES="2")
        environment.pop("XLA_FLAGS", None)
        workers = [
            subprocess.Popen(
                [sys.executable, str(program)],
                env=environment | {"PROCESS": str(number), "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        try:
            outputs = [worker.communicate(timeout=300)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        self.assertEqual([worker.returncode for worker in workers], [0, 0], outputs)
        checksums = [re.findall(r"checksum -?\d+\.\d+", output) for output in outputs]
        self.assertLen(checksums[0], 1)
        self.assertEqual(*checksums)


class GlueTest(absltest.TestCase):
    """What a user writes between their own code and the package stays short."""

    def test_lines(self) -> None:
        counted = 0
        for page in sorted(TUTORIALS.glob("*.md")):
            marked = re.findall(
                r"<!-- glue: at most (\d+) lines -->\n```python\n(.*?)```",
                page.read_text(),
                re.DOTALL,
            )
            for most, code in marked:
                lines = [line for line in code.splitlines() if line.strip()]
                with self.subTest(page.name):
                    self.assertLessEqual(len(lines), int(most))
                    self.assertLessEqual(max(map(len, lines)), 100)
                counted += 1
        self.assertGreaterEqual(counted, 3)


class EveryPageTest(absltest.TestCase):
    def test_python_is_run(self) -> None:
        source = pathlib.Path(__file__).read_text()
        for page in markdown.pages():
            if markdown.blocks(page, "python") and markdown.name_of(page) not in ELSEWHERE:
                self.assertIn(f'"{page.name}"', source, f"no test runs the Python of {page}")


if __name__ == "__main__":
    absltest.main()
