"""What is read of a model's folder lies inside it, is a file, and has a size that fits."""

from __future__ import annotations

import os
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from jax_tkg.models import folder
from jax_tkg.models.errors import ModelError
from tests.models import files


class FolderTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.outer = files.folder(self)
        self.path = self.outer / "model"
        self.path.mkdir()
        (self.outer / "secret").write_text("{}")
        self.folder = folder.ModelFolder(self.path)

    def assert_refused(self, name: str, expected: str) -> None:
        for read in (self.folder.file, self.folder.text, self.folder.json):
            with self.assertRaisesRegex(ModelError, expected) as caught:
                read(name)
            self.assertIn(str(self.path), str(caught.exception))

    def test_inside(self) -> None:
        (self.path / "a").write_text('{"key": 1}')
        (self.path / "inner").mkdir()
        (self.path / "inner" / "b").symlink_to("../a")
        self.assertEqual(list(self.folder.json("inner/b")), ["key"])
        self.assertEqual(self.folder.file("a"), self.path / "a")

    def test_by_a_relative_path(self) -> None:
        (self.path / "a").write_text("text")
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.outer)
        self.assertEqual(folder.ModelFolder(pathlib.Path("model")).text("a"), "text")

    @parameterized.parameters("../secret", "inner/../../secret", "..", "{outer}/secret")
    def test_names_that_lead_outside(self, name: str) -> None:
        (self.path / "inner").mkdir()
        self.assert_refused(name.format(outer=self.outer), "expected a file inside the folder, got")

    def test_links_that_lead_outside(self) -> None:
        (self.path / "file").symlink_to(self.outer / "secret")
        (self.path / "folder").symlink_to(self.outer)
        self.assert_refused("file", "expected a file inside the folder, got")
        self.assert_refused("folder/secret", "expected a file inside the folder, got")

    def test_cache_of_the_hub(self) -> None:
        snapshot, blobs = self.outer / "snapshots" / "1234", self.outer / "blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        (blobs / "abcd").write_text("text")
        (snapshot / "a").symlink_to("../../blobs/abcd")
        (snapshot / "b").symlink_to("../../secret")
        # One of a repository's several models.
        inner = snapshot / "Q4" / "parts"
        inner.mkdir(parents=True)
        (inner / "a").symlink_to("../../../../blobs/abcd")
        (inner / "b").symlink_to("../../a")
        (inner / "c").symlink_to("../../../../secret")
        for path, other in ((snapshot, "b"), (inner, "c")):
            cached = folder.ModelFolder(path)
            self.assertEqual(cached.text("a"), "text")
            with self.assertRaisesRegex(ModelError, "expected a file inside the folder"):
                cached.text(other)
        self.assertEqual(folder.ModelFolder(inner).text("b"), "text")

    def test_not_a_file(self) -> None:
        (self.path / "circle").symlink_to("circle")
        os.mkfifo(self.path / "pipe")
        (self.path / "inner").mkdir()
        for name in ("pipe", "inner"):
            self.assert_refused(name, "expected a file, got something else")
        self.assert_refused("absent", "expected a file, got no such file")
        self.assert_refused("circle", "expected a file")
        for name in ("a" * 300, "a" * 5000, "a\x00b", "\ud800"):
            self.assert_refused(name, "expected a file")

    def test_too_large(self) -> None:
        (self.path / "a").write_bytes(bytes(101))
        self.enter_context(mock.patch.object(folder, "MAX_TEXT_BYTES", 100))
        with self.assertRaisesRegex(ModelError, "a: expected at most 100 bytes, got 101"):
            self.folder.text("a")

    @parameterized.named_parameters(
        ("not_utf8", b'{"a": "\xff"}', "expected text in UTF-8, got byte 0xff at 7"),
        ("empty", b"", "expected JSON, got Expecting value"),
        ("cut", b'{"a": ', "expected JSON, got Expecting value"),
        ("deep", b"[" * 100_000, "expected JSON, got values nested too deeply"),
        ("deep_object", b'{"a":' * 100_000, "expected JSON, got values nested too deeply"),
        ("long_number", b'{"a": ' + b"1" * 5000 + b"}", "expected JSON, got Exceeds the limit"),
        ("list", b"[]", "expected a JSON object, got list"),
    )
    def test_json(self, content: bytes, message: str) -> None:
        (self.path / "a.json").write_bytes(content)
        with self.assertRaisesRegex(ModelError, f"a.json: {message}"):
            self.folder.json("a.json")

    def test_absent_json(self) -> None:
        self.assertEqual(list(self.folder.optional_json("a.json")), [])
        # A link to nothing is there, and so must be right.
        (self.path / "a.json").symlink_to("nothing")
        with self.assertRaisesRegex(ModelError, "a.json: expected a file, got no such file"):
            self.folder.optional_json("a.json")


if __name__ == "__main__":
    absltest.main()
