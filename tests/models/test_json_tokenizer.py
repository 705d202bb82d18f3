"""Tokenizers of folders, judged by that of a GGUF file and by transformers."""

from __future__ import annotations

import json
import random
from typing import Any

import hypothesis
import pytest
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from tokenizers import decoders, processors

from jax_tkg.models import gguf, gguf_tokenizer, json_tokenizer
from jax_tkg.models.errors import ModelError
from jax_tkg.models.tokenizer import Tokenizer
from tests.models import files, tiny, tokenizer_files

END = tiny.VOCABULARY.index(tiny.END)
MESSAGES = [{"role": "user", "content": "Hi"}]


class _FolderTest(parameterized.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = files.folder(self)

    def _write(self, name: str, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def _read(self) -> Tokenizer:
        return json_tokenizer.read_tokenizer(self.folder)

    def _prompt(self) -> str:
        template = self._read().chat_template
        assert template is not None
        return template.prompt(MESSAGES)

    def _fails(self, message: str) -> None:
        with self.assertRaisesRegex(ModelError, message) as caught:
            self._read()
        self.assertLen(str(caught.exception).splitlines(), 1)


class TokenizerTest(_FolderTest):
    @hypothesis.settings(max_examples=100)
    @hypothesis.given(st.text())
    def test_equals_that_of_a_gguf_file(self, text: str) -> None:
        if not (self.folder / "model.gguf").exists():
            tiny.write_tiny(self.folder / "model.gguf")
            tokenizer_files.write(self.folder)
            self.from_gguf = gguf_tokenizer.read_tokenizer(
                gguf.GgufFile(self.folder / "model.gguf")
            )
            self.from_json = self._read()
        ids = self.from_json.encode(text)
        self.assertEqual(ids, self.from_gguf.encode(text))
        self.assertEqual(self.from_json.decode(ids), self.from_gguf.decode(ids))
        self.assertEqual(self.from_json.stop_tokens, (END,))

    def test_begin_token(self) -> None:
        expected = tokenizer_files.write(self.folder, begins=True).encode("the").ids
        self.assertEqual(self._read().encode("the"), expected)

    def test_several_begin_tokens(self) -> None:
        """As in GLM-4, whose templates write them out too."""
        backend = tokenizer_files.write(self.folder)
        begin = [backend.token_to_id(text) for text in (tiny.USER, tiny.ASSISTANT)]
        pairs = list(zip((tiny.USER, tiny.ASSISTANT), begin, strict=True))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tiny.USER} {tiny.ASSISTANT} $A {tiny.END}",
            special_tokens=[*pairs, (tiny.END, END)],
        )
        backend.save(str(self.folder / "tokenizer.json"))
        expected = backend.encode("the").ids[:-1]
        self.assertEqual(expected[:2], begin)
        tokenizer = self._read()
        self.assertEqual(tokenizer.encode("the"), expected)
        self.assertEqual(tokenizer.encode(f"{tiny.USER}{tiny.ASSISTANT}the"), expected)

    def test_tokens_that_only_the_description_has(self) -> None:
        size = len(tiny.VOCABULARY)
        added = {
            str(tiny.VOCABULARY.index("and")): {"content": "and", "special": True, "rstrip": True},
            str(size): {"content": "<new>", "special": False},
            str(END): {"content": tiny.END},
        }
        tokenizer_files.write(self.folder, added_tokens_decoder=added, extra_special_tokens=["an"])
        tokenizer = self._read()
        ids = tokenizer.encode("x and <new>an")
        names = ("x", "Ġ", "and", None, "an")
        expected = [size if name is None else tiny.VOCABULARY.index(name) for name in names]
        self.assertEqual(ids, expected)
        self.assertEqual(tokenizer.decode(ids), "x <new>")

    def test_added_tokens_in_any_order(self) -> None:
        """Sorted as text, 1000 comes before 999; ids are given in the order of numbers."""
        size = len(tiny.VOCABULARY)
        added = {str(size + n): {"content": f"<{n}>", "special": False} for n in range(5)}
        backwards = dict(reversed(added.items()))
        tokenizer_files.write(self.folder, added_tokens_decoder=backwards)
        self.assertEqual(self._read().encode("<4><0>"), [size + 4, size])

    @parameterized.parameters("special", "lstrip", "rstrip", "single_word")
    def test_flags_that_the_description_changes(self, flag: str) -> None:
        """As in transformers, which judges below."""
        index = tiny.VOCABULARY.index(tiny.WHOLE)
        whole = {"content": tiny.WHOLE, "normalized": False, flag: True}
        tokenizer_files.write(self.folder, added_tokens_decoder={str(index): whole})
        tokenizer = self._read()
        ids = tokenizer.encode(f"a {tiny.WHOLE} b")
        space, before, after = (tiny.VOCABULARY.index(text) for text in ("Ġ", "a", "b"))
        expected = {
            "lstrip": [before, index, space, after],
            "rstrip": [before, space, index, after],
        }
        self.assertEqual(ids, expected.get(flag, [before, space, index, space, after]))
        inside = tokenizer.encode(f"a{tiny.WHOLE}b")
        self.assertEqual(index in inside, flag != "single_word")
        self.assertEqual(tiny.WHOLE in tokenizer.decode(ids), flag != "special")

    def test_special_tokens_stay_special(self) -> None:
        index = tiny.VOCABULARY.index(tiny.USER)
        added = {str(index): {"content": tiny.USER, "special": False, "rstrip": True}}
        tokenizer_files.write(self.folder, added_tokens_decoder=added)
        tokenizer = self._read()
        self.assertEqual(tokenizer.encode(f"{tiny.USER} a"), [index, tiny.VOCABULARY.index("a")])
        self.assertEqual(tokenizer.decode([index]), "")

    def test_tokens_of_older_files(self) -> None:
        """`added_tokens.json`, which counts where there is no `added_tokens_decoder`."""
        size = len(tiny.VOCABULARY)
        tokenizer_files.write(self.folder)
        self._write("added_tokens.json", {"<b>": size + 1, "<a>": size, tiny.WHOLE: 3})
        self.assertEqual(self._read().encode("<b><a>"), [size + 1, size])
        tokenizer_files.write(self.folder, added_tokens_decoder={})
        self.assertNotIn(size, self._read().encode("<a>"))

    @parameterized.parameters(
        ({"<b>": 5}, "<b>: expected the id of '<b>', 267, got 5"),
        ({"<b>": -1}, "<b>: expected an integer from 0 to "),
        ({"\ud800": 267}, r"\\ud800: expected a text without half a surrogate pair, got 267"),
        ({"<b>": "267"}, "<b>: expected an integer from 0 to .*, got '267'"),
        ([], "expected a JSON object, got list"),
    )
    def test_odd_tokens_of_older_files(self, tokens: Any, message: str) -> None:
        tokenizer_files.write(self.folder)
        self._write("added_tokens.json", tokens)
        self._fails(f"added_tokens.json: {message}")

    def test_special_tokens_that_are_split(self) -> None:
        tokenizer_files.write(self.folder, split_special_tokens=True)
        tokenizer = self._read()
        self.assertNotIn(END, tokenizer.encode(tiny.END))
        self.assertEqual(tokenizer.decode(tokenizer.encode(tiny.END)), tiny.END)
        tokenizer_files.write(self.folder, split_special_tokens="yes")
        self._fails("split_special_tokens: expected true or false, got 'yes'")

    @parameterized.product(
        described=(
            {},
            {"lstrip": True},
            {"rstrip": True, "special": True},
            {"single_word": True},
            {"normalized": True},
        ),
        others=({}, {"split_special_tokens": True}, {"pad_token": tiny.WHOLE}),
    )
    @pytest.mark.oracle
    def test_added_tokens_as_transformers_has_them(
        self, described: dict[str, bool], others: dict[str, Any]
    ) -> None:
        transformers = pytest.importorskip("transformers")
        added = {
            str(tiny.VOCABULARY.index(text)): {"content": text, **described}
            for text in (tiny.WHOLE, tiny.USER)
        }
        tokenizer_files.write(
            self.folder,
            added_tokens_decoder=added,
            eos_token=tiny.END,
            tokenizer_class="PreTrainedTokenizerFast",
            **others,
        )
        judge, tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder), self._read()
        for text in (f"a {tiny.WHOLE} b{tiny.WHOLE}", f"the {tiny.USER} a{tiny.USER}in{tiny.END}"):
            ids = tokenizer.encode(text)
            self.assertEqual(ids, judge(text)["input_ids"])
            self.assertEqual(tokenizer.decode(ids), judge.decode(ids, skip_special_tokens=True))

    @parameterized.parameters(
        ({"5": "x"}, r"added_tokens_decoder.5: expected the id of 'x', 87, got 'x'"),
        ({"999": {"content": "new"}}, "decoder.999: expected the id of 'new', 267, got"),
        ({"267": {"content": "new", "special": 1}}, "267.special: expected true or false, got 1"),
        ({"267": 5}, "267: expected a string, or an object"),
        ({"267": {"content": "\ud800"}}, "267: expected a text without half a surrogate pair, got"),
        ({"267": {"content": ""}}, "267: expected the id of '', 267, got"),
        ({"267": {"content": "b b"}, "268": {"content": "b b"}}, "268: expected the id of 'b b', "),
        ([], "added_tokens_decoder: expected an object, got"),
    )
    def test_odd_added_tokens(self, added: Any, message: str) -> None:
        tokenizer_files.write(self.folder, added_tokens_decoder=added)
        self._fails(message)

    def test_prompts_are_neither_cut_nor_padded(self) -> None:
        backend = tokenizer_files.write(self.folder)
        expected = backend.encode("the cat").ids
        backend.enable_truncation(2)
        backend.enable_padding(length=64)
        backend.save(str(self.folder / "tokenizer.json"))
        self.assertEqual(self._read().encode("the cat"), expected)

    def test_other_kinds(self) -> None:
        backend = tokenizer_files.write(self.folder)
        backend.decoder = decoders.WordPiece()
        backend.save(str(self.folder / "tokenizer.json"))
        self._fails("decoder: expected ByteLevel, or the sequence .*, got {'cleanup': True, ")

    @parameterized.parameters(
        ("", "expected JSON"),
        ("{}", "expected a tokenizer of the tokenizers package, got the error"),
        ("[]", "expected a JSON object, got list"),
    )
    def test_damaged(self, content: str, message: str) -> None:
        tokenizer_files.write(self.folder)
        self._write("tokenizer.json", content)
        self._fails(f"tokenizer.json: {message}")

    @parameterized.parameters("x", "##", "a long prefix", 5)
    def test_prefix_of_parts(self, prefix: Any) -> None:
        """With the first, the package aborts the process; at the next two it panics."""
        tokenizer_files.write(self.folder)
        content = json.loads((self.folder / "tokenizer.json").read_text())
        content["model"]["continuing_subword_prefix"] = prefix
        self._write("tokenizer.json", content)
        self._fails("tokenizer.json: model.continuing_subword_prefix: expected '', got ")

    def test_mutated(self) -> None:
        """Whatever a byte is changed to, the file is read or refused in one line."""
        tokenizer_files.write(self.folder)
        names = ("tokenizer.json", "tokenizer_config.json")
        wholes = {name: (self.folder / name).read_bytes() for name in names}
        draw = random.Random(5)
        for _ in range(300):
            name = draw.choice(names)
            mutated = bytearray(wholes[name])
            for _ in range(draw.choice((1, 1, 3))):
                mutated[draw.randrange(len(mutated))] = draw.randrange(256)
            (self.folder / name).write_bytes(mutated)
            try:
                self._read().encode("the cat")
            except ModelError as error:
                self.assertLen(str(error).splitlines(), 1)
            (self.folder / name).write_bytes(wholes[name])

    def test_absent(self) -> None:
        self._fails("tokenizer.json: expected a file, got no such file")


class StopTokensTest(_FolderTest):
    @parameterized.named_parameters(
        ("tokenizer", None, None, (END,)),
        ("generation_config", [3, 5], None, (3, 5, END)),
        ("one", 3, None, (3, END)),
        ("config", None, [3, 5], (3, 5, END)),
        ("generation_config_first", 3, [5], (3, END)),
        ("equal", [END, 3], None, (3, END)),
    )
    def test_all_that_the_files_say(
        self, generation: Any, config: Any, expected: tuple[int, ...]
    ) -> None:
        tokenizer_files.write(self.folder)
        if generation is not None:
            self._write("generation_config.json", {"eos_token_id": generation})
        self._write("config.json", {"eos_token_id": config})
        self.assertEqual(self._read().stop_tokens, expected)

    def test_without_the_tokenizers(self) -> None:
        tokenizer_files.write(self.folder, eos_token="gone")
        self._fails("tokenizer_config.json: eos_token: expected a token of .*, got 'gone'")
        self._write("generation_config.json", {"eos_token_id": 3})
        self.assertEqual(self._read().stop_tokens, (3,))

    def test_in_an_older_file(self) -> None:
        tokenizer_files.write(self.folder, eos_token=None)
        self._write("special_tokens_map.json", {"eos_token": tiny.END})
        self.assertEqual(self._read().stop_tokens, (END,))

    @parameterized.parameters(True, False)
    @pytest.mark.oracle
    def test_two_files_that_disagree(self, newer: bool) -> None:
        transformers = pytest.importorskip("transformers")
        tokenizer_files.write(
            self.folder,
            eos_token=tiny.END,
            tokenizer_class="PreTrainedTokenizerFast",
            added_tokens_decoder={} if newer else None,
        )
        self._write("special_tokens_map.json", {"eos_token": tiny.USER})
        judge = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.assertEqual(self._read().stop_tokens, (judge.eos_token_id,))
        self.assertEqual(judge.eos_token, tiny.END if newer else tiny.USER)

    def test_nowhere(self) -> None:
        tokenizer_files.write(self.folder, eos_token=None)
        self._fails("tokenizer_config.json: eos_token: expected the token that ends a text, but")

    @parameterized.parameters(("2",), (True,), ([[2]],), ([2.0],), (-1,), (2**40,), ({"id": 2},))
    def test_odd_ids(self, ids: Any) -> None:
        tokenizer_files.write(self.folder)
        self._write("generation_config.json", {"eos_token_id": ids})
        self._fails("generation_config.json: eos_token_id: expected an integer from 0 to")

    @parameterized.parameters(
        ("eos_token", "\ud800"),
        ("pad_token", {"content": "a\udfff"}),
        ("eot_token", "\udbff b"),
        ("additional_special_tokens", ["\ud800"]),
        ("extra_special_tokens", {"additional": "\ud800"}),
    )
    def test_half_a_surrogate_pair(self, key: str, value: Any) -> None:
        """JSON can spell one; no tokenizer takes it."""
        tokenizer_files.write(self.folder, **{key: value})
        self._fails(f"tokenizer_config.json: {key}.*: expected a text without half a surrogate")

    def test_numbers_that_are_no_tokens(self) -> None:
        tokenizer_files.write(self.folder, num_image_token=256, add_eos_token=True)
        self.assertEqual(self._read().stop_tokens, (END,))

    @parameterized.parameters((5,), (["</s>"],), ({"content": 5},), ({"text": "</s>"},))
    def test_odd_tokens(self, token: Any) -> None:
        tokenizer_files.write(self.folder, eos_token=token)
        self._fails("tokenizer_config.json: eos_token: expected a string, or an object")


class TemplateTest(_FolderTest):
    @parameterized.parameters("field", "list", "file", "folder")
    def test_default(self, where: str) -> None:
        named = [("tools", "no"), ("default", tiny.CHAT_TEMPLATE)]
        template: Any = tiny.CHAT_TEMPLATE if where == "field" else "no"
        if where == "list":
            template = [{"name": n, "template": t} for n, t in named]
        tokenizer_files.write(self.folder, chat_template=template)
        if where in ("file", "folder"):
            self._write("chat_template.jinja", tiny.CHAT_TEMPLATE)
        if where == "folder":
            self._write("additional_chat_templates/tools.jinja", "no")
        self.assertEqual(self._prompt(), "<|user|>Hi<|assistant|>")

    def test_none(self) -> None:
        tokenizer_files.write(self.folder, chat_template=None)
        self.assertIsNone(self._read().chat_template)

    @parameterized.parameters("list", "folder")
    def test_no_default(self, where: str) -> None:
        template = [{"name": "rag", "template": "no"}] if where == "list" else None
        tokenizer_files.write(self.folder, chat_template=template)
        if where == "folder":
            self._write("additional_chat_templates/rag.jinja", "no")
        with self.assertRaisesRegex(ModelError, "expected one named 'default', got 'rag'"):
            self._prompt()

    @parameterized.parameters(
        (5,), ({"default": "x"},), ([5],), ([{"name": "default"}],), ([{"template": "x"}],)
    )
    def test_odd(self, template: Any) -> None:
        tokenizer_files.write(self.folder, chat_template=template)
        self._fails("tokenizer_config.json: chat_template: expected a string, or a list of|string")

    def test_not_utf8(self) -> None:
        tokenizer_files.write(self.folder)
        (self.folder / "chat_template.jinja").write_bytes(b"a\xff")
        self._fails("chat_template.jinja: expected text in UTF-8")

    @pytest.mark.oracle
    def test_special_tokens_as_transformers_shows_them(self) -> None:
        transformers = pytest.importorskip("transformers")
        names = (
            "bos_token",
            "eos_token",
            "pad_token",
            "unk_token",
            "image_token",
            "eot",
            "sep_token",
        )
        source = "|".join(f"{{{{ {name} if {name} is defined else 'none' }}}}" for name in names)
        tokenizer_files.write(
            self.folder,
            chat_template=source,
            bos_token="Ġt",
            eos_token=tiny.END,
            pad_token={"content": tiny.USER, "__type": "AddedToken"},
            image_token=tiny.ASSISTANT,
            extra_special_tokens={"eot": tiny.END},
            add_bos_token=False,
            tokenizer_class="PreTrainedTokenizerFast",
        )
        judge = transformers.AutoTokenizer.from_pretrained(self.folder)
        expected = judge.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        self.assertEqual(self._prompt(), expected)
        self.assertEqual(
            expected, f"Ġt|{tiny.END}|{tiny.USER}|none|{tiny.ASSISTANT}|{tiny.END}|none"
        )

    def test_additional_special_tokens(self) -> None:
        tokenizer_files.write(
            self.folder,
            chat_template="{{ additional_special_tokens | join(' ') }}",
            additional_special_tokens=[tiny.USER, {"content": tiny.ASSISTANT}],
        )
        self.assertEqual(self._prompt(), f"{tiny.USER} {tiny.ASSISTANT}")


if __name__ == "__main__":
    absltest.main()
