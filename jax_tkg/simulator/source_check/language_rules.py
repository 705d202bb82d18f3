"""What NKI's compiler rejects, and which of AWS's documents says so."""

from __future__ import annotations

import dataclasses

RELEASE_0_2 = "NKI release notes, 0.2.0, breaking changes"
RELEASE_0_3 = "NKI release notes, 0.3.0, breaking changes"
RELEASE_0_4 = "NKI release notes, 0.4.0, deprecated and removed APIs"
RELEASE_0_6 = "NKI release notes, 0.6.0, deprecated and removed APIs"
KNOWN_ISSUES = "NKI release notes, 0.4.0, known issues"
GUIDE_VALUES = "NKI language guide, NKI values"
GUIDE_CONTROL = "NKI language guide, control flow"
GUIDE_CLASSES = "NKI language guide, class support"
GUIDE_CACHING = "NKI language guide, kernel caching"
MIGRATION_0_2 = "NKI migration guide, features of neuronxcc.nki that are not in nki"
MIGRATION_LOOPS = "NKI migration guide, rules for migrated loops"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Something that the compiler rejects.

    Attributes:
      name: short and unique.
      summary: what is rejected.
      remedy: what to write.
      source: the document that says so.
      implied: the document lists what there is, and this is not in the list; it does not say that
        this is rejected.
    """

    name: str
    summary: str
    remedy: str
    source: str
    implied: bool = False


RULES = {
    rule.name: rule
    for rule in (
        Rule("identity", "`is` and `is not`", "compare with == or !=", RELEASE_0_3),
        Rule("keyword-only", "keyword-only parameters", "drop the `*`", RELEASE_0_3),
        Rule("list-argument", "a list as a kernel's argument", "pass a tuple", RELEASE_0_3),
        Rule("raw-enum", "a number in place of an enum member", "name the member", RELEASE_0_3),
        Rule("string-buffer", "a string as buffer", "use nl.sbuf and so on", RELEASE_0_3),
        Rule("hbm-output", "nl.hbm as the buffer of a tensor", "use nl.shared_hbm", RELEASE_0_3),
        Rule(
            "removed-parameter",
            "a parameter that instructions no longer have",
            "see the release notes for its successor",
            RELEASE_0_3,
        ),
        Rule(
            "affine-select-offset",
            "affine_select with more than three positional arguments",
            "give `offset` and what follows it by name",
            RELEASE_0_3,
        ),
        Rule(
            "removed-function",
            "tensor_copy_dynamic_src and tensor_copy_dynamic_dst",
            "use tensor_copy on .ap(scalar_offset=...)",
            RELEASE_0_4,
        ),
        Rule("old-namespace", "the namespace neuronxcc.nki", "import nki", RELEASE_0_4),
        Rule(
            "no-such-instruction",
            "nl.divide, nl.fmod and nl.mod, which hardware does not have",
            "multiply by nl.reciprocal",
            KNOWN_ISSUES,
        ),
        Rule("scalar-power", "nl.power with a number", "use two tiles", KNOWN_ISSUES),
        Rule(
            "plain-matmul", "nl.matmul without transpose_x", "pass transpose_x=True", KNOWN_ISSUES
        ),
        Rule(
            "dynamic-range",
            "nl.dynamic_range, which is deprecated",
            "use nl.fori_loop",
            RELEASE_0_6,
        ),
        Rule("loop-result", "a value returned by a fori_loop body", "return none", MIGRATION_LOOPS),
        Rule("loop-step", "a fori_loop step below one", "count up", MIGRATION_LOOPS),
        Rule(
            "base-class",
            "a class that does not derive from NKIObject alone, nor is an enumeration",
            "derive it from nki.language.NKIObject",
            GUIDE_CLASSES,
        ),
        Rule("dictionary-key", "a dictionary key that is no string", "use strings", GUIDE_VALUES),
        Rule(
            "value",
            "sets, bytes and complex numbers",
            "use lists, tuples, numbers",
            GUIDE_VALUES,
            implied=True,
        ),
        Rule(
            "statement",
            "try, with (but for nl.no_reorder), raise, del, match, yield, await, async",
            "use if, for and while on compile-time values, and assert",
            GUIDE_CONTROL,
            implied=True,
        ),
        Rule(
            "outer-state",
            "global and nonlocal: a kernel is a function of its arguments alone",
            "pass the value as an argument",
            GUIDE_CACHING,
            implied=True,
        ),
        Rule(
            "scalar-seed",
            "nl.random_seed with a number",
            "pass a (1, 1) tensor in SBUF",
            KNOWN_ISSUES,
        ),
        Rule(
            "loop-in-no-reorder",
            "a loop that runs on the device inside nl.no_reorder",
            "put no_reorder inside the loop's body",
            MIGRATION_LOOPS,
        ),
        Rule(
            "renamed-parameter",
            "is_moving_zero of nc_matmul",
            "call it is_moving_onezero",
            RELEASE_0_2,
        ),
        Rule("mask-parameter", "the parameter `mask`", "slice the operands", MIGRATION_0_2),
        Rule("index-grid", "nl.arange", "use slices or .ap()", MIGRATION_0_2),
    )
}

NOT_CHECKED = (
    "whether a condition, bound or index is a compile-time value",
    "lambda, comprehensions, conditional expressions and star-arguments: no document says whether "
    "they are evaluated",
    "the lifetime of tensors that a loop body declares",
    "nki.jit on a function that a kernel calls: the migration guide wants it removed, the release "
    "notes of 0.2.0 allow it",
    "list and string methods, f-string formats, and slices of Python lists",
)
"""What the documents leave open, or what cannot be seen in source."""


def rules_table() -> str:
    """The rules as a Markdown table, and what is not checked as a list."""
    lines = ["| rule | reported | instead | source |", "|---|---|---|---|"]
    for rule in RULES.values():
        source = f"implied by {rule.source}" if rule.implied else rule.source
        lines.append(f"| {rule.name} | {rule.summary} | {rule.remedy} | {source} |")
    return "\n".join([*lines, "", "Not checked:", "", *(f"- {what}" for what in NOT_CHECKED), ""])
