"""Every value of a file has the type and the range that its reader asks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from absl.testing import absltest, parameterized

from jax_tkg.models.errors import MAX_MESSAGE, ModelError
from jax_tkg.models.typed_keys import Range, TypedKeys

READERS = {
    "integer": lambda keys: keys.integer("key", Range(1, 8)),
    "number": lambda keys: keys.number("key", Range(0.5, 8.0)),
    "boolean": lambda keys: keys.boolean("key"),
    "string": lambda keys: keys.string("key"),
    "choice": lambda keys: keys.string("key", ("silu", "swish")),
    "strings": lambda keys: keys.strings("key"),
    "integers": lambda keys: keys.integers("key", Range(1, 8)),
    "numbers": lambda keys: keys.numbers("key", Range(0.5, 8.0), 2),
    "integer_or_integers": lambda keys: keys.integer_or_integers("key", Range(1, 8)),
    "object": lambda keys: list(keys.object("key")),
}
FITTING: dict[str, list[Any]] = {
    "integer": [1, 8],
    "number": [1, 0.5, 8.0],
    "boolean": [True, False],
    "string": ["", "x"],
    "choice": ["silu", "swish"],
    "strings": [[], ["x", "y"]],
    "integers": [[], [1, 8], np.array([1, 8], np.uint32)],
    "numbers": [[1.0, 8], np.array([1.0, 2.0], np.float32), np.array([1, 2], np.int32)],
    "integer_or_integers": [1, [2, 3]],
    "object": [{}],
}
VALUES: list[Any] = [
    None, True, False, 0, 1, 8, 9, -1, 10**400, 0.5, 1.0, 0.25, 8.5, math.nan, math.inf, -math.inf,
    "", "x", "silu", "two", [], {}, [1], [9], [True], [1.0], ["x"], ["x", 1], [None], {"a": 1},
    "\ud800", np.array([1, 9], np.int32), np.array([1.0, 2.0], np.float32),
]  # fmt: skip
ALSO_FITTING: dict[str, list[Any]] = {
    "number": [8, 1.0],
    "string": ["silu", "two", "\ud800"],
    "integers": [[1]],
    "numbers": [np.array([1.0, 2.0], np.float32)],
    "integer_or_integers": [8, [], [1]],
    "strings": [["x"]],
    "object": [None, {"a": 1}],
}


class TypeTest(parameterized.TestCase):
    @parameterized.parameters(*READERS)
    def test_what_fits_is_returned(self, reader: str) -> None:
        for value in FITTING[reader]:
            actual = READERS[reader](TypedKeys("file", {"key": value}))
            if reader == "integer_or_integers":
                value = value if isinstance(value, list) else [value]
            np.testing.assert_equal(actual, value if reader != "object" else [])

    @parameterized.parameters(*READERS)
    def test_all_else_is_refused(self, reader: str) -> None:
        fitting = [repr(v) for v in (*FITTING[reader], *ALSO_FITTING.get(reader, []))]
        for value in VALUES:
            if repr(value) in fitting:
                continue
            with self.assertRaisesRegex(
                ModelError, "^file: key: expected .*, (got|but) ", msg=value
            ):
                READERS[reader](TypedKeys("file", {"key": value}))

    def test_number_is_a_float(self) -> None:
        self.assertIs(type(TypedKeys("file", {"key": 2}).number("key", Range(1.0, 3.0))), float)

    def test_default_of_an_absent_key(self) -> None:
        keys = TypedKeys("file", {"null": None})
        for key in ("null", "absent"):
            self.assertEqual(keys.integer(key, Range(1, 2), default=7), 7)
            self.assertEqual(keys.number(key, Range(1, 2), default=0.0), 0.0)
            self.assertIs(keys.boolean(key, default=False), False)
            self.assertEqual(keys.string(key, default=""), "")
            self.assertNotIn(key, keys)
        self.assertEqual(list(keys), [])


class MessageTest(parameterized.TestCase):
    @parameterized.parameters(
        ("two", "file: key: expected an integer from 1 to 8, got 'two'"),
        (9, "file: key: expected an integer from 1 to 8, got 9"),
        (None, "file: key: expected an integer from 1 to 8, but the key is missing"),
        (list(range(1000)), "file: key: expected an integer from 1 to 8, got [0, 1, 2, 3, ...]"),
    )
    def test_names_file_key_expected_and_actual(self, value: Any, message: str) -> None:
        with self.assertRaises(ModelError) as caught:
            TypedKeys("file", {"key": value}).integer("key", Range(1, 8))
        self.assertEqual(str(caught.exception), message)

    def test_required_object(self) -> None:
        message = "^file: outer: expected an object, but the key is missing$"
        with self.assertRaisesRegex(ModelError, message):
            TypedKeys("file", {"outer": None}).object("outer", required=True)

    def test_key_of_an_object_inside(self) -> None:
        keys = TypedKeys("file", {"outer": {"inner": "x"}}).object("outer")
        with self.assertRaisesRegex(ModelError, r"^file: outer\.inner: expected"):
            keys.boolean("inner")

    @parameterized.parameters("a\nb", "a\x1b[2Jb", "a\ud800b", "a\x00b", "a\u2028b")
    def test_one_printable_line_whatever_a_file_is_named(self, file: str) -> None:
        message = str(ModelError(f"{file}: wrong"))
        self.assertTrue(message.isprintable(), message)
        message.encode("utf-8")
        self.assertRegex(message, "^a.+b: wrong$")

    def test_bounded(self) -> None:
        message = str(ModelError(f"file: tensor {'x' * 10**6}: expected a, got b"))
        self.assertLen(message, MAX_MESSAGE)
        self.assertRegex(message, r"^file: tensor xxx.*\.\.\..*xxx: expected a, got b$")


if __name__ == "__main__":
    absltest.main()
