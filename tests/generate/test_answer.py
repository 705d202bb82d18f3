"""Where answers end: stop texts, in whatever pieces the text comes."""

from __future__ import annotations

import hypothesis
from absl.testing import absltest
from hypothesis import strategies as st

from jax_tkg.generate.answer import StopTexts

_TEXTS = st.text("ab", max_size=12)


class StopTextsTest(absltest.TestCase):
    @hypothesis.given(
        st.lists(_TEXTS, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
    )
    @hypothesis.example(pieces=["aba"], stops=["aba", "b"])
    @hypothesis.example(pieces=["ab", "a"], stops=["aba", "b"])
    def test_cut_before_the_first_that_is_complete(
        self, pieces: list[str], stops: list[str]
    ) -> None:
        text = "".join(pieces)
        first = next(
            (
                end - max(len(stop) for stop in stops if text[:end].endswith(stop))
                for end in range(len(text) + 1)
                if text[:end].endswith(tuple(stops))
            ),
            len(text),
        )
        taken, written = StopTexts(stops), ""
        for piece in pieces:
            written += taken.take(piece)
            # What has been written is never taken back.
            self.assertTrue(text[:first].startswith(written))
        found = taken.found
        written += taken.take("", is_last=True)
        self.assertEqual((written, found), (text[:first], any(stop in text for stop in stops)))

    def test_only_what_may_begin_a_stop_text_is_held_back(self) -> None:
        taken = StopTexts(["</end>", "\n\n"])
        self.assertEqual(taken.take("one <"), "one ")
        self.assertEqual(taken.take("two\n"), "<two")
        self.assertEqual(taken.take("three"), "\nthree")
        self.assertEqual(taken.take("four\n\nfive"), "four")
        self.assertEqual(taken.take("six", is_last=True), "")


if __name__ == "__main__":
    absltest.main()
