"""Chat templates: what checkpoints' templates rely on, and what they may not do."""

from __future__ import annotations

from unittest import mock

import pytest
from absl.testing import absltest, parameterized

from jax_tkg.models import chat
from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError

MESSAGES = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi é"}]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def _render(source: str) -> str:
    return ChatTemplate(source, SPECIAL_TOKENS, "model.gguf").prompt(MESSAGES)


CASES = (
    ("text", "{{ bos_token }}{{ messages[1]['content'] }}", "<s>Hi é"),
    ("generation_prompt", "{% if add_generation_prompt %}yes{% endif %}", "yes"),
    ("nothing_escaped", "{{ messages[0].content }}", "Be <brief>."),
    ("json", "{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
    ("ascii", "{{ 'é' | tojson(ensure_ascii=True) }}", '"\\u00e9"'),
    ("separators", "{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", '[1,{"a":2}]'),
    ("sorted", "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
    ("indent", "{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
    ("break", "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
    ("blocks", "a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
    ("undefined", "{% if date is defined %}x{% else %}y{% endif %}", "y"),
    ("no_tools", "{% if tools is not none %}x{% else %}y{% endif %}", "y"),
    ("no_documents", "{% if documents is none %}y{% endif %}{{ tools is defined }}", "yTrue"),
    ("special_tokens", "{{ eos_token + pad_token }}", "</s><pad>"),
    ("generation", "a{% generation %}{{ bos_token }}{% endgeneration %}b", "a<s>b"),
)
"""Name, template and the text it makes."""


class RenderTest(parameterized.TestCase):
    @parameterized.named_parameters(*CASES)
    def test_renders(self, source: str, expected: str) -> None:
        self.assertEqual(_render(source), expected)

    @parameterized.named_parameters(*CASES)
    @pytest.mark.oracle
    def test_transformers_makes_the_same_text(self, source: str, expected: str) -> None:
        templates = pytest.importorskip("transformers.utils.chat_template_utils")
        texts, _ = templates.render_jinja_template(
            [MESSAGES], chat_template=source, add_generation_prompt=True, **SPECIAL_TOKENS
        )
        self.assertEqual(texts, [expected])

    def test_date(self) -> None:
        self.assertRegex(_render("{{ strftime_now('%Y-%m-%d') }}"), r"^\d{4}-\d\d-\d\d$")

    def test_default_of_several(self) -> None:
        sources = {"rag": "{{ wrong", "default": "{{ messages[0].role }}"}
        self.assertEqual(ChatTemplate(sources, {}, "here").prompt(MESSAGES), "system")


@pytest.mark.thorough
class ErrorsTest(parameterized.TestCase):
    def _fails(self, source: str, message: str) -> None:
        if not message.startswith("expected"):
            message = f"expected the text of a conversation, got an error: {message}"
        with self.assertRaisesRegex(ModelError, "^model.gguf: chat template: " + message) as caught:
            _render(source)
        self.assertLen(str(caught.exception).splitlines(), 1)

    @parameterized.named_parameters(
        ("syntax", "\n{% if %}", "line 2: Expected an expression"),
        ("refusal", "{{ raise_exception('No system\n role') }}", "No system role$"),
        ("kind", "{{ messages + 1 }}", "TypeError: can only concatenate"),
        ("private", "{{ ''.__class__.__mro__ }}", ".*unsafe"),
        ("mutation", "{{ messages.append(1) }}", ".*'append' of 'list' object is unsafe"),
        ("break_alone", "{% break %}", "SyntaxError: 'break' outside loop"),
        ("no_message", "{{ raise_exception('') }}", "TemplateError$"),
        ("empty", "{% if false %}x{% endif %}", "expected a text, got an empty one"),
        ("half_a_character", "{{ '\\ud800' }}", "expected a text, got one with half a surrogate"),
        ("deep_expression", "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "it is nested"),
        ("deep_blocks", "{% if true %}" * 150 + "x" + "{% endif %}" * 150, ".*too many"),
        ("endless_recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it is nested"),
        ("range", "{% for i in range(10**9) %}x{% endfor %}", ".*Range too big"),
        ("output", "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "it wrote mo"),
        ("memory", "{{ 'x' * 10**10 }}", "it needs too much memory"),
        ("filter_memory", "{{ 'x' | center(10**10) }}", "it needs too much memory"),
    )
    def test_one_line(self, source: str, message: str) -> None:
        self._fails(source, message)

    @parameterized.named_parameters(
        ("loops", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"),
        ("power", "{{ 7 ** (10 ** 9) }}"),
    )
    @pytest.mark.extended_except("power")
    def test_too_long(self, source: str) -> None:
        with mock.patch.object(chat, "MAX_SECONDS", 2):
            self._fails(source, "it took more than 2 s$")

    def test_no_default(self) -> None:
        template = ChatTemplate({"rag": "x", "tool_use": "y"}, {}, "here.json")
        message = "^here.json: chat template: expected one named 'default', got 'rag', 'tool_use'$"
        with self.assertRaisesRegex(ModelError, message):
            template.prompt(MESSAGES)


if __name__ == "__main__":
    absltest.main()
