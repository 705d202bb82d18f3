"""Chat templates: what checkpoints' templates rely on, and what they may not do."""

from __future__ import annotations

from absl.testing import absltest, parameterized

from jax_tkg.models.chat import ChatTemplate
from jax_tkg.models.errors import ModelError

MESSAGES = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi"}]


def _render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, "model.gguf").prompt(
        MESSAGES
    )


class RenderTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("text", "{{ bos_token }}{{ messages[1]['content'] }}", "<s>Hi"),
        ("generation", "{% if add_generation_prompt %}yes{% endif %}", "yes"),
        ("nothing_escaped", "{{ messages[0].content }}", "Be <brief>."),
        ("json", "{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("break", "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
        ("blocks", "a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("undefined", "{% if tools is defined %}x{% else %}y{% endif %}", "y"),
    )
    def test_renders(self, source: str, expected: str) -> None:
        self.assertEqual(_render(source), expected)

    def test_date(self) -> None:
        self.assertRegex(_render("{{ strftime_now('%Y-%m-%d') }}"), r"^\d{4}-\d\d-\d\d$")


class ErrorsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("syntax", "{% if %}", "model.gguf: chat template: Expected an expression"),
        ("refusal", "{{ raise_exception('No system\n role') }}", "template: No system role"),
        ("kind", "{{ messages + 1 }}", "can only concatenate"),
        ("private", "{{ ''.__class__.__mro__ }}", "unsafe"),
        ("mutation", "{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
    )
    def test_one_line(self, source: str, message: str) -> None:
        with self.assertRaisesRegex(ModelError, message) as caught:
            _render(source)
        self.assertLen(str(caught.exception).splitlines(), 1)


if __name__ == "__main__":
    absltest.main()
