"""Links inside the repository lead somewhere, also those to headings."""

from __future__ import annotations

from absl.testing import absltest, parameterized

from tests.pages import markdown


class LinksTest(parameterized.TestCase):
    @parameterized.parameters(*map(markdown.name_of, markdown.pages()))
    def test_targets(self, name: str) -> None:
        page = markdown.ROOT / name
        for target in markdown.links(page):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            self.assertTrue(linked.exists(), target)
            if anchor:
                self.assertIn(anchor, markdown.anchors(linked), target)

    def test_anchors(self) -> None:
        found = markdown.anchors(markdown.ROOT / "BUILD.md")
        self.assertContainsSubset({"neuron", "how-the-tests-are-layered"}, found)
        self.assertEqual(found, markdown.anchors(markdown.DOCS / "project" / "building.md"))

    def test_every_page_is_in_the_site(self) -> None:
        index = (markdown.DOCS / "index.md").read_text()
        for page in sorted([*markdown.DOCS.rglob("*.md"), *markdown.DOCS.rglob("*.rst")]):
            name = page.relative_to(markdown.DOCS).with_suffix("").as_posix()
            if name != "index":
                self.assertRegex(index, rf"(?m)^{name}$")


if __name__ == "__main__":
    absltest.main()
