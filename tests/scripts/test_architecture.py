"""The picture of the package's rooms."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from absl.testing import absltest

from scripts import architecture
from scripts.package_imports import PACKAGE, modules


class ArchitectureTest(absltest.TestCase):
    def test_every_module_is_in_a_box(self) -> None:
        boxes = architecture.boxes()
        lost = [m for m in modules() if m != PACKAGE and architecture.box_of(m, boxes) is None]
        self.assertEqual(lost, [])

    def test_arrows_run_downwards(self) -> None:
        for importer, target in architecture.edges(architecture.boxes()):
            self.assertLessEqual(importer.band, target.band, (importer.title, target.title))

    def test_the_picture_is_well_formed(self) -> None:
        root = ElementTree.fromstring(architecture.picture())
        # Long titles are broken after a slash.
        text = "".join(node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text"))
        for box in architecture.boxes():
            self.assertIn(box.title, text)


if __name__ == "__main__":
    absltest.main()
