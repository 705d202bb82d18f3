"""Mutated chat templates, in each of the places where a model may hold one."""

from __future__ import annotations

import json
import pathlib
import random

from scripts.fuzz_models import folder_cases, gguf_cases
from scripts.fuzz_models.case import Case, Mutation, Verdict
from tests.models.tiny import CHAT_TEMPLATE, Tiny

_REFUSED = (
    "",
    "{% break %}",
    "{% continue %}",
    "{% for %}",
    "{{",
    "{% if %}{% endif %}",
    "{% endfor %}",
    "{% unknown %}",
    "{{ messages | unknown }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 20_000 + "1 }}",
    "{% if 1 %}" * 2000 + "x" + "{% endif %}" * 2000,
    "{{ 'a' * 10**10 }}",
    "{{ 7 ** (10 ** 9) }}",
    "{{ range(10**9) | list }}",
    "{% for i in range(10**9) %}{% for j in range(10**9) %}{% endfor %}{% endfor %}x",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'base.html' %}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception('a\\nb') }}",
    "{{ raise_exception() }}",
    "{{ messages.append(1) }}",
    "{{ 1 / 0 }}",
    "{{ undefined.attribute }}",
    "{{ messages[99].role }}",
    "{{ '\\ud800' }}",
    "{{ strftime_now(1) }}",
)
_LOADED = (
    CHAT_TEMPLATE,
    "{{ messages | tojson(ensure_ascii=False, separators=(',', ':')) }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% if tools is not none %}{{ tools.x.y }}{% endif %}{{ bos_token }}x{{ eos_token }}",
    "{{ strftime_now('%Y') }}",
    "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}x{% endfor %}",
    "{{ undefined }}x",
    "plain",
    "{#" + "c" * 100_000 + "#}x",
)


def _source(rng: random.Random) -> tuple[str, Mutation]:
    choice = rng.random()
    if choice < 0.5:
        source = rng.choice(_REFUSED)
        return source, Mutation(f"template {source[:60]!r}", Verdict.REFUSED, "chat template")
    if choice < 0.65:
        source = rng.choice(_LOADED)
        return source, Mutation(f"template {source[:60]!r}", Verdict.LOADED)
    characters = list(rng.choice(_LOADED[:6]))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(characters))
        characters[place] = rng.choice(["", "{", "}", "%", "'", "(", "\0", "\n", "é", "|", "0"])
    source = "".join(characters)
    return source, Mutation(f"template {source[:60]!r}")


def make(rng: random.Random, folder: pathlib.Path) -> Case:
    """Writes a model with a mutated template."""
    source, mutation = _source(rng)
    place = rng.choice(["gguf", "description", "list", "file"])
    if place == "gguf":
        model = gguf_cases.image(
            Tiny(hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1)
        )
        model.put("tokenizer.chat_template", *gguf_cases.encoded(source))
        path = folder / "model.gguf"
        path.write_bytes(model.content())
        return Case(path, mutation)
    image = folder_cases.write(folder)
    if place == "file":
        (image.path / "chat_template.jinja").write_text(source, encoding="utf-8")
        return Case(image.path, mutation)
    described = image.json(folder_cases.DESCRIPTION)
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": source}]
    described["chat_template"] = source if place == "description" else named
    path = image.path / folder_cases.DESCRIPTION
    path.write_text(json.dumps(described))
    return Case(image.path, mutation)
