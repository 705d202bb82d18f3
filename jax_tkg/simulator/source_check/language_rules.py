"""What NKI's compiler rejects, and how that is known."""

from __future__ import annotations

import dataclasses
import enum

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
MIGRATION_0_6 = "NKI migration guide, pattern 1: counted loop with a runtime bound"
MIGRATION_LOOPS = "NKI migration guide, rules for migrated loops"
TENSOR_SELECT = "nki.language.NkiTensor.select"

# Files of leanprover/KLR, the open source of the parsing front end, as of March 2026.
KLR_GATHER = "KLR, interop/klr/gather.c"
KLR_SIMPLIFY = "KLR, KLR/NKI/Simplify.lean"
KLR_TRACE = "KLR, KLR/Trace/NKI.lean"
KLR_TERM = "KLR, KLR/Trace/Term.lean"
KLR_PYTHON = "KLR, KLR/Trace/Python.lean"


class Basis(enum.Enum):
    """How it is known that the compiler rejects something."""

    DOCUMENTED = "documented"
    """AWS's documentation says so."""

    IMPLIED = "implied"
    """AWS's documentation lists what there is, and this is not in the list."""

    REPORTED = "reported"
    """Users quote the compiler's message, and KLR's source agrees where it is named."""

    KLR = "KLR"
    """The source of NKI's parsing front end, leanprover/KLR, rejects it."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Something that the compiler rejects.

    Attributes:
      name: short and unique.
      summary: what is rejected.
      remedy: what to write.
      source: the document, the quoted message or the file of KLR.
      basis: how it is known.
      note: why a finding is a note, which fails no check: some version of the compiler accepts it.
        None for what is rejected.
    """

    name: str
    summary: str
    remedy: str
    source: str
    basis: Basis = Basis.DOCUMENTED
    note: str | None = None

    @property
    def origin(self) -> str:
        """How it is known and from where, in words."""
        if self.basis is Basis.IMPLIED:
            return f"implied by {self.source}"
        if self.basis is Basis.REPORTED:
            return f"reported: {self.source}"
        return self.source


def _reported(name: str, summary: str, remedy: str, source: str) -> Rule:
    return Rule(name, summary, remedy, source, Basis.REPORTED)


def _klr(name: str, summary: str, remedy: str, source: str) -> Rule:
    return Rule(name, summary, remedy, source, Basis.KLR)


_DOCUMENTED = (
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
    Rule("plain-matmul", "nl.matmul without transpose_x", "pass transpose_x=True", KNOWN_ISSUES),
    Rule(
        "dynamic-range",
        "nl.dynamic_range",
        "use nl.fori_loop",
        RELEASE_0_6,
        note="deprecated, accepted with a warning by NKI 0.6; NKI 0.7 has it no more",
    ),
    Rule("loop-result", "a value returned by a fori_loop body", "return none", MIGRATION_LOOPS),
    Rule("loop-step", "a fori_loop step below one", "count up", MIGRATION_LOOPS),
    Rule(
        "loop-variable",
        "arithmetic on a fori_loop's variable, and assignment to it",
        "use it only as `scalar_offset` of .ap()",
        MIGRATION_LOOPS,
    ),
    Rule(
        "loop-in-no-reorder",
        "a loop that runs on the device inside nl.no_reorder",
        "put no_reorder inside the loop's body",
        MIGRATION_LOOPS,
    ),
    Rule(
        "base-class",
        "a class that does not derive from NKIObject alone, nor is an enumeration",
        "derive it from nki.language.NKIObject",
        GUIDE_CLASSES,
    ),
    Rule("dictionary-key", "a dictionary key that is no string", "use strings", GUIDE_VALUES),
    Rule(
        "scalar-seed",
        "nl.random_seed with a number",
        "pass a (1, 1) tensor in SBUF",
        KNOWN_ISSUES,
    ),
    Rule(
        "renamed-parameter",
        "is_moving_zero of nc_matmul",
        "call it is_moving_onezero",
        RELEASE_0_2,
    ),
    Rule("mask-parameter", "the parameter `mask`", "slice the operands", MIGRATION_0_2),
    Rule("index-grid", "nl.arange", "use slices or .ap()", MIGRATION_0_2),
    Rule(
        "loop-body",
        "a function defined inside another and given to nl.fori_loop or nl.while_loop",
        "keep it, and require that version",
        MIGRATION_0_6,
        note="allowed from NKI 0.6.0, refused before",
    ),
    Rule(
        "register-select",
        ".select with the variable of a fori_loop",
        "use .ap(scalar_offset=...); `index` is an integer or a tensor",
        TENSOR_SELECT,
        Basis.IMPLIED,
    ),
    Rule(
        "value",
        "sets, bytes and complex numbers",
        "use lists, tuples, numbers",
        GUIDE_VALUES,
        Basis.IMPLIED,
    ),
    Rule(
        "statement",
        "try, with (but for nl.no_reorder), raise, del, match, type, yield, await, async",
        "use if, for and while on compile-time values, and assert",
        GUIDE_CONTROL,
        Basis.IMPLIED,
    ),
    Rule(
        "outer-state",
        "global and nonlocal: a kernel is a function of its arguments alone",
        "pass the value as an argument",
        GUIDE_CACHING,
        Basis.IMPLIED,
    ),
)

_REPORTED = (
    _reported(
        "loop-target",
        "a loop target that is not one name",
        "take one name and unpack it in the body",
        '"expecting simple variable", NKI 0.5.0 and 0.6; KLR, KLR/NKI/Simplify.lean',
    ),
    _reported(
        "comprehension",
        "comprehensions and generator expressions",
        "append in a loop",
        '"unsupported expression"; KLR, interop/klr/gather.c',
    ),
    _reported(
        "inner-function",
        "a function defined inside another, other than the body of a loop on the device",
        "define it at the module's level and pass what it needs",
        '"NKI does not support inner function definitions", since NKI 0.3.0',
    ),
    _reported(
        "inner-call",
        "a direct call of a function defined inside another",
        "call a function of the module's level",
        "refused by NKI 0.6 as well, which has inner functions for loops only",
    ),
    _reported(
        "sort",
        "sorted() and list.sort",
        "pass what is sorted",
        "not among the compiler's functions; KLR, KLR/Trace/Python.lean",
    ),
    _reported(
        "integer-method",
        "methods of integers",
        "use arithmetic",
        "not among the compiler's functions; KLR, KLR/Trace/Term.lean",
    ),
    Rule(
        "nested-argument",
        "a read through a nested object of a kernel's argument, as in `a.b.c`",
        "take `a.b` into a local first",
        "refused by some versions of the compiler",
        Basis.REPORTED,
        note="accepted by others",
    ),
)

_FROM_KLR = (
    _klr("lambda", "lambda", "define a function", KLR_GATHER),
    _klr("walrus", "assignment inside an expression, `:=`", "assign before", KLR_GATHER),
    _klr("matrix-operator", "the operator `@`", "use nisa.nc_matmul", KLR_SIMPLIFY),
    _klr(
        "star-argument",
        "`*` and `**` in calls, dictionaries and on the left of an assignment",
        "name each argument",
        KLR_SIMPLIFY,
    ),
    _klr("star-parameter", "`*args` and `**kwargs`", "name each parameter", KLR_SIMPLIFY),
    _klr(
        "many-values",
        "min and max of other than two numbers or one sequence, or with keywords",
        "nest calls of two",
        KLR_PYTHON,
    ),
    _klr(
        "large-integer",
        "an integer beyond 32 bits, written out or a module's constant",
        "compute it in the kernel, or use a float",
        KLR_GATHER,
    ),
    _klr(
        "format-specification",
        "a format specification in an f-string",
        "print the plain value",
        KLR_GATHER,
    ),
    _klr("inner-import", "import inside a function", "import at the top", KLR_GATHER),
    _klr("inner-class", "a class inside a function", "define it at the top", KLR_GATHER),
    _klr("loop-else", "`else` of for and while", "use a flag", KLR_SIMPLIFY),
    _klr(
        "nested-assignment",
        'assignment to `a.b.c` ("is immutable"): only an attribute of a plain name is assigned',
        "take `a.b` into a local, or call a method",
        KLR_TRACE,
    ),
    _klr(
        "tile-assignment",
        "assignment to indices of a tile, to a slice or to several indices",
        "write with an nki.isa instruction",
        KLR_TRACE,
    ),
    _klr(
        "unpack-target",
        "unpacking into attributes or indices, or into a list",
        "unpack into names and assign those",
        KLR_SIMPLIFY,
    ),
    _klr(
        "chained-assignment",
        "an assignment to two attributes or indices at once",
        "write two statements",
        KLR_SIMPLIFY,
    ),
    _klr(
        "builtin",
        "Python's functions other than abs, bool, dict, divmod, float, int, isinstance, len, list, "
        "max, min, print, range, slice, str, tuple, type",
        "write a loop",
        KLR_PYTHON,
    ),
    _klr(
        "range-value",
        "range and its kin of nki.language elsewhere than after `in` of a for loop",
        "append the numbers in a loop",
        "KLR, KLR/NKI/Annotations.lean",
    ),
    _klr("list-insert", "list.insert", "build the list in order", KLR_TERM),
    _klr(
        "list-pop",
        "list.pop with an index, which takes the last element all the same",
        "slice the list",
        KLR_PYTHON,
    ),
    _klr("string-method", "methods of strings", "compare whole strings", KLR_TERM),
    _klr(
        "dictionary-name",
        "a key of a dictionary display that is no string literal",
        "assign d[key] afterwards",
        KLR_SIMPLIFY,
    ),
    _klr(
        "decorator",
        "decorators other than nki.jit, staticmethod and dataclass",
        "drop it",
        KLR_SIMPLIFY,
    ),
    _klr(
        "class-body",
        "statements in a class other than fields and methods, and class keywords",
        "move them into a method",
        KLR_GATHER,
    ),
    _klr(
        "early-attribute",
        "an attribute of a call or of an index in the test of if or while, in what a for loop runs "
        "over, right of and/or, or in a branch of a conditional expression: it is evaluated before "
        "the statement, or not at all",
        "take it into a local before the statement",
        KLR_SIMPLIFY,
    ),
    Rule(
        "shared-name",
        "a name that stands for two functions, classes or constants in two modules",
        "give each a name of its own",
        KLR_GATHER,
        Basis.KLR,
        note="told apart only by the order in which the compiler reads them",
    ),
)

RULES = {rule.name: rule for rule in (*_DOCUMENTED, *_REPORTED, *_FROM_KLR)}

NOT_CHECKED = (
    "whether a condition, bound or index is a compile-time value",
    "the lifetime of tensors that a loop body declares, and of PSUM across loops",
    "nki.jit on a function that a kernel calls: the migration guide wants it removed, the release "
    "notes of 0.2.0 allow it",
    "methods of lists, strings and integers where the source does not show what the object is: "
    "they are told by their names",
    "strings that are indexed, isinstance with a tuple of classes, and functions of `math` that "
    "KLR lacks",
    "what tracing rejects, which NKI 0.6 has beside the parser and NKI 0.7 by default: it allows "
    "all of Python where nothing depends on values of the device",
    "== between objects of a kernel's classes, which tracing compares in another way",
)
"""What is left open, or cannot be seen in source."""


PAGE_HEADER = """# Constructs that NKI's compiler rejects

What `python -m jax_tkg.simulator.check_language package.module:kernel` looks for in a kernel and in
every function, method and class that the kernel reaches. Nothing here was tried on AWS's compiler:
each rule names the document that states or implies it, the message that users report, or the file
that rejects it in [KLR](https://github.com/leanprover/KLR), the open source of NKI's parsing front
end (as of March 2026). NKI 0.6 uses it by default, NKI 0.7 with `NKI_COMPILER_FRONTEND=custom`.
A note fails no check. Written by
`python -m jax_tkg.simulator.check_language --rules > docs/language_rules.md`.

"""


def rules_table() -> str:
    """The rules as a Markdown table, and what is not checked as a list."""
    lines = ["| rule | reported | instead | known from |", "|---|---|---|---|"]
    for rule in RULES.values():
        note = f" (a note: {rule.note})" if rule.note else ""
        lines.append(f"| {rule.name} | {rule.summary}{note} | {rule.remedy} | {rule.origin} |")
    return "\n".join([*lines, "", "Not checked:", "", *(f"- {what}" for what in NOT_CHECKED), ""])
