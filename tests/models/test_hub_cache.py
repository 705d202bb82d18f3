"""Models in the Hugging Face Hub's cache, by name."""

from __future__ import annotations

import os
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from jax_tkg.models.checkpoint import open_checkpoint
from jax_tkg.models.errors import ModelError
from jax_tkg.models.hub_cache import cached_model, hub_cache
from tests.models import files, tiny_folder, tokenizer_files


class HubCacheTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.home = files.folder(self)
        self.enter_context(mock.patch.dict(os.environ, {"HF_HOME": str(self.home)}))
        os.environ.pop("HF_HUB_CACHE", None)
        self.repository = self.home / "hub" / "models--an-org--a.model"

    def _snapshot(self, revision: str) -> pathlib.Path:
        """A folder of the cache; its files are links into `blobs`, as the Hub's client has them."""
        folder = self.repository / "snapshots" / revision
        folder.mkdir(parents=True)
        return folder

    def test_opened_by_name(self) -> None:
        folder, blobs = self._snapshot("abc123"), self.repository / "blobs"
        tiny_folder.write(folder)
        tokenizer_files.write(folder)
        blobs.mkdir()
        for index, path in enumerate(sorted(folder.iterdir())):
            path.rename(blobs / str(index))
            path.symlink_to(blobs / str(index))
        named = open_checkpoint("an-org/a.model")
        self.assertEqual(named.config, open_checkpoint(folder).config)

    def test_main_is_taken(self) -> None:
        chosen = [self._snapshot(revision) for revision in ("aaa", "bbb")][1]
        with self.assertRaisesRegex(ModelError, "and 2 snapshots and no refs/main in"):
            cached_model("an-org/a.model")
        (self.repository / "refs").mkdir()
        (self.repository / "refs" / "main").write_text("bbb\n")
        self.assertEqual(cached_model("an-org/a.model"), chosen)
        # A reference never leads out of the cache.
        (self.repository / "refs" / "main").write_text("../..")
        with self.assertRaises(ModelError):
            cached_model("an-org/a.model")

    def test_absent(self) -> None:
        with self.assertRaisesRegex(
            ModelError,
            r"^an-org/a.model: expected a GGUF .*, and no snapshot of it in .*models--an-org--a",
        ):
            open_checkpoint("an-org/a.model")

    @parameterized.parameters("model.gguf", "/an-org/a.model", "a/b/c", "../a", "~/model", "a/..")
    def test_no_names(self, name: str) -> None:
        self.assertIsNone(cached_model(name))

    def test_where_the_cache_is(self) -> None:
        self.assertEqual(hub_cache(), self.home / "hub")
        with mock.patch.dict(os.environ, HF_HUB_CACHE="/elsewhere"):
            self.assertEqual(hub_cache(), pathlib.Path("/elsewhere"))
        with mock.patch.dict(os.environ, HF_HOME="", XDG_CACHE_HOME="/cache"):
            self.assertEqual(hub_cache(), pathlib.Path("/cache/huggingface/hub"))


if __name__ == "__main__":
    absltest.main()
