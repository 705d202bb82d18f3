"""Lines of requests: what they become, and what is said of those that are none."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jax_tkg.generate.request_lines import (
    KEYS,
    Defaults,
    LineError,
    LineParser,
    Messages,
    PromptEncoder,
    read_lines,
)
from jax_tkg.models.sampling import Sampling
from tests.models import files

DEFAULTS = Defaults(
    max_tokens=7, sampling=Sampling(top_k=3), seed=2**64 - 2, stops=("END",), system=None
)


def _encode(prompt: str | Messages) -> list[int]:
    text = prompt if isinstance(prompt, str) else "|".join(m["content"] for m in prompt)
    if text == "refused":
        raise ValueError("prompt: expected another,\ngot this")
    return [ord(character) for character in text]


def _parse(content: bytes | dict[str, Any], line: int = 1, defaults: Defaults = DEFAULTS) -> Any:
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return LineParser("some.jsonl", defaults, _encode).parse(line, content)


class RequestTest(absltest.TestCase):
    def test_defaults(self) -> None:
        parsed = _parse(b'{"prompt": "abc"}\r', line=3)
        self.assertEqual((parsed.line, parsed.name, parsed.stops), (3, None, ("END",)))
        request = parsed.request
        self.assertEqual(list(request.prompt), [97, 98, 99])
        # The seed of the third line, beyond the last of 64 bits.
        self.assertEqual((request.max_tokens, request.seed), (7, 0))
        self.assertEqual(request.sampling, Sampling(top_k=3))

    def test_everything(self) -> None:
        settings = {"temperature": 1, "top_p": 0.5, "top_k": 9, "min_p": 0, "seed": 5}
        parsed = _parse(
            {"id": [1], "prompt": "ab", "system": "s", "stop": "x", "max_tokens": 2, **settings}
        )
        self.assertEqual((parsed.name, parsed.stops), ([1], ("x",)))
        self.assertEqual(bytes(parsed.request.prompt), b"s|ab")
        self.assertEqual((parsed.request.max_tokens, parsed.request.seed), (2, 5))
        self.assertEqual(parsed.request.sampling, Sampling(1, 0.5, top_k=9))

    def test_messages(self) -> None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        parsed = _parse({"messages": messages, "stop": ["x", "y"]})
        self.assertEqual(bytes(parsed.request.prompt), b"a|b")
        self.assertEqual(parsed.stops, ("x", "y"))

    def test_system_message_of_the_flags(self) -> None:
        """Before a prompt, and before messages that have none."""
        defaults = dataclasses.replace(DEFAULTS, system="flag")
        user, own = {"role": "user", "content": "a"}, {"role": "system", "content": "own"}
        for fields, want in (
            ({"prompt": "a"}, b"flag|a"),
            ({"prompt": "a", "system": "own"}, b"own|a"),
            ({"messages": [user]}, b"flag|a"),
            ({"messages": [own, user]}, b"own|a"),
        ):
            parsed = _parse(fields, defaults=defaults)
            self.assertEqual(bytes(parsed.request.prompt), want)

    def test_lines_of_a_file(self) -> None:
        path = files.folder(self) / "requests.jsonl"
        path.write_bytes(b"\xef\xbb\xbf{}\n\n \r\nlast")
        self.assertEqual(read_lines(str(path)), [(1, b"{}"), (4, b"last")])


class _Tokenizer:
    """A token for each character; a chat's text begins with the roles."""

    chat_template: Any = None

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def prompt(self, messages: Messages) -> str:
        return "".join(message["role"][0] for message in messages) + messages[-1]["content"]


class PromptEncoderTest(absltest.TestCase):
    def test_chat(self) -> None:
        tokenizer = _Tokenizer()
        tokenizer.chat_template = tokenizer
        encode = PromptEncoder(tokenizer, True, limit=6)
        self.assertEqual(bytes(encode("abc")), b"uabc")
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "abc"}]
        self.assertEqual(bytes(encode(messages)), b"suabc")
        with self.assertRaisesRegex(ValueError, "prompt: expected 1..5 tokens .*, got 6"):
            encode("abcde")

    def test_no_chat(self) -> None:
        tokenizer = _Tokenizer()
        tokenizer.chat_template = tokenizer
        for chat, has_template in ((False, True), (True, False)):
            tokenizer.chat_template = tokenizer if has_template else None
            with self.assertRaisesRegex(ValueError, "messages, system: expected a prompt alone"):
                PromptEncoder(tokenizer, chat, 6)([{"role": "user", "content": "a"}])
        encode = PromptEncoder(tokenizer, False, limit=6)
        self.assertEqual(bytes(encode("abc")), b"abc")
        with self.assertRaisesRegex(ValueError, "prompt: expected 1..5 tokens .*, got 0"):
            encode("")


class ErrorTest(parameterized.TestCase):
    @parameterized.parameters(
        (b"{", "expected a JSON object, got .*at character 2"),
        (b"[1]", "expected a JSON object, got \\[1\\]"),
        (b'"\xff"', "expected text in UTF-8, got byte 0xff at 1"),
        (b"[" * 100_000, "expected a JSON object, got"),
        (b"{}", "expected one of the keys prompt and messages, got both or none"),
        ({"prompt": "a", "messages": []}, "expected one of the keys prompt and messages"),
        ({"prompt": ""}, 'prompt: expected a text, got ""'),
        ({"prompt": 5}, "prompt: expected a text, got 5"),
        ({"prompt": "\ud800"}, "prompt: expected a text, got one with half"),
        ({"prompt": "a", "promt": 1}, 'expected the keys id, prompt, .*, got "promt"'),
        ({"prompt": "a", "temperature": "1"}, 'temperature: expected a number, got "1"'),
        ({"prompt": "a", "temperature": True}, "temperature: expected a number, got true"),
        ({"prompt": "a", "temperature": -1}, "temperature: expected a finite number >= 0, got -1"),
        (b'{"prompt": "a", "id": NaN}', "id: expected a JSON value, which has no NaN .*, got NaN"),
        (b'{"prompt": "a", "id": [{"a": -1e999}]}', "id: expected a JSON value"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature: expected a finite number"),
        (b'{"prompt": "a", "temperature": 1' + b"0" * 400 + b"}", "temperature: expected"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        ({"prompt": "a", "top_k": 1.5}, "top_k: expected a whole number, got 1.5"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"prompt": "a", "seed": -1}, "seed: expected 0 <= seed"),
        ({"prompt": "a", "stop": [""]}, "stop: expected a text, or a list of texts"),
        ({"prompt": "a", "stop": 1}, "stop: expected a text, or a list of texts, got 1"),
        ({"messages": {}}, "messages: expected a list of messages, got {}"),
        ({"messages": [{"role": "user"}]}, "messages: expected objects with role and content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages: content: expected a text"),
        ({"messages": [{"role": "user", "content": "a"}], "system": "b"}, "system: expected none"),
        ({"prompt": "refused"}, "prompt: expected another, got this"),
    )
    def test_what_is_said(self, content: bytes | dict[str, Any], message: str) -> None:
        with self.assertRaisesRegex(LineError, f"^some.jsonl:8: {message}") as caught:
            _parse(content, line=8)
        self.assertEqual(caught.exception.line, 8)
        self.assertNotIn("\n", str(caught.exception))
        self.assertLess(len(str(caught.exception)), 250)

    def test_its_name_is_known(self) -> None:
        with self.assertRaises(LineError) as caught:
            _parse({"id": "b7", "prompt": 1})
        self.assertEqual(caught.exception.name, "b7")

    @hypothesis.settings(max_examples=40)
    @hypothesis.given(
        st.dictionaries(
            st.sampled_from(KEYS),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
                lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                max_leaves=4,
            ),
        )
    )
    def test_any_object_is_a_request_or_an_error(self, fields: dict[str, Any]) -> None:
        try:
            _parse(fields)
        except LineError as error:
            self.assertIn("some.jsonl:1: ", str(error))

    @hypothesis.given(st.binary(max_size=40))
    def test_any_bytes(self, content: bytes) -> None:
        with self.assertRaises(LineError):
            _parse(content)


if __name__ == "__main__":
    absltest.main()
