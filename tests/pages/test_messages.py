"""docs/troubleshooting.md explains every message that the package raises, and no other."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from absl.testing import absltest, parameterized

import jax_tkg
from jax_tkg import masks, quantize, weights
from jax_tkg.models.checkpoint import open_checkpoint
from scripts import messages


class MessagesTest(absltest.TestCase):
    def test_every_message_is_explained(self) -> None:
        rows = [(section, messages.pattern(row)) for section, row in messages.explained()]
        for section, where, message in messages.raised():
            with self.subTest(where):
                found = any(
                    own == section and row.fullmatch(message) is not None for own, row in rows
                )
                self.assertTrue(
                    found,
                    f"{message!r}: explain it in docs/troubleshooting.md, section {section!r}",
                )

    def test_every_row_is_raised(self) -> None:
        raised = [(section, message) for section, _, message in messages.raised()]
        self.assertGreater(len(raised), 200)
        for section, row in messages.explained():
            pattern = messages.pattern(row)
            with self.subTest(row):
                self.assertTrue(
                    any(own == section and pattern.fullmatch(message) for own, message in raised),
                    f"{row!r}: no such message in the source of section {section!r}",
                )

    def test_rows_say_why(self) -> None:
        for line in messages.PAGE.read_text().splitlines():
            if line.startswith("| "):
                self.assertNotRegex(line, r"\| *\|$")


def _call(num_layers: int) -> object:
    return jax_tkg.transformer_tkg(*[None] * 15, num_layers=num_layers)  # type: ignore[arg-type]


class RealMessagesTest(parameterized.TestCase):
    """What is really raised fits the row that the source's text fits."""

    @parameterized.named_parameters(
        (
            "argument",
            lambda: jax_tkg.transformer_tkg(*[None] * 15, num_layers=1),
            "expected …, got None",
        ),
        ("option", lambda: jax_tkg.transformer_tkg(*[None] * 15, num_layers=0), "at least 1"),
        ("window", lambda: masks.window_mask(jnp.zeros(1), 0, 8, 1, 1), "window: expected"),
        ("dtype", lambda: quantize.quantize_float8(jnp.ones((2, 2)), jnp.int8), "dtype: expected"),
        ("packing", lambda: weights.pack_qkv(*[jnp.ones((8, 6))] * 3, d_head=4), "heads*d"),
        ("model", lambda: open_checkpoint("nowhere"), "got no such file or folder"),
    )
    def test_row(self, call: Callable[[], object], part: str) -> None:
        with self.assertRaises((TypeError, ValueError)) as caught:
            call()
        rows = [row for _, row in messages.explained() if part in row]
        self.assertTrue(
            any(messages.pattern(row).fullmatch(str(caught.exception)) for row in rows),
            f"{caught.exception} is none of {rows}",
        )


if __name__ == "__main__":
    absltest.main()
