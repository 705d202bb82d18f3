"""Kernels that break one rule of the language checker each, beside kernels that keep it."""

from __future__ import annotations

PREAMBLE = """
from enum import Enum
import nki
import nki.isa as nisa
import nki.language as nl
from nki.language import NKIObject
"""

# rule -> (source that breaks it, the line within it, source that does not)
CASES: dict[str, tuple[str, int, str]] = {
    "identity": (
        "def kernel(x):\n    if x is None:\n        return x\n",
        2,
        "def kernel(x):\n    if x == None:\n        return x\n",
    ),
    "identity_not": (
        "def kernel(x):\n    y = 1 if x is not None else 2\n    return y\n",
        2,
        "def kernel(x):\n    y = 1 if x != None else 2\n    return y\n",
    ),
    "keyword-only": (
        "def kernel(x, *, scale):\n    return x\n",
        1,
        "def kernel(x, scale=1.0):\n    return x\n",
    ),
    "list-argument": (
        "def kernel(x: list):\n    return x\n",
        1,
        "def kernel(x: tuple):\n    return x\n",
    ),
    "list-argument_of_tensors": (
        "def kernel(x: list[int]):\n    return x\n",
        1,
        "def kernel(x: tuple[int, ...]):\n    return x\n",
    ),
    "list-argument_default": (
        "def kernel(x=[1]):\n    return x\n",
        1,
        "def kernel(x=(1,)):\n    return x\n",
    ),
    "raw-enum": (
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=3)\n",
        2,
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=nisa.dge_mode.none)\n",
    ),
    "raw-enum_engine": (
        "def kernel(x, y):\n    nisa.tensor_copy(dst=x, src=y, engine=5)\n",
        2,
        "def kernel(x, y):\n    nisa.tensor_copy(dst=x, src=y, engine=nisa.engine.vector)\n",
    ),
    "raw-enum_by_name": (
        "NONE = 3\n\ndef kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=NONE)\n",
        4,
        "MODE = nisa.dge_mode.none\n\n"
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dge_mode=MODE)\n",
    ),
    "scalar-seed": (
        "def kernel(x):\n    nl.random_seed(42)\n",
        2,
        "def kernel(x):\n    nl.random_seed(nl.full((1, 1), 42, dtype=nl.int32))\n",
    ),
    "loop-in-no-reorder": (
        "def kernel(n, body):\n    with nl.no_reorder():\n        nl.fori_loop(0, n, body)\n",
        2,
        "def kernel(n):\n    with nl.no_reorder():\n"
        "        for i in nl.affine_range(4):\n            pass\n",
    ),
    "renamed-parameter": (
        "def kernel(x, y):\n    nisa.nc_matmul(x, y, y, is_moving_zero=True)\n",
        2,
        "def kernel(x, y):\n    nisa.nc_matmul(x, y, y, is_moving_onezero=True)\n",
    ),
    "mask-parameter": (
        "def kernel(x, m):\n    nisa.memset(x, 0, mask=m)\n",
        2,
        "def helper(x, mask):\n    return x\n\ndef kernel(x, m):\n    helper(x, mask=m)\n",
    ),
    "index-grid": (
        "def kernel(x):\n    return x[nl.arange(4)]\n",
        2,
        "def kernel(x):\n    return x[0:4]\n",
    ),
    "no-such-instruction_by_another_name": (
        "import nki.language as language\n\ndef kernel(x):\n    return language.fmod(x, x)\n",
        4,
        "import nki.language as language\n\ndef kernel(x):\n    return language.add(x, x)\n",
    ),
    "string-buffer": (
        "def kernel(x):\n    t = nl.ndarray((1, 1), dtype=nl.float32, buffer='sbuf')\n",
        2,
        "def kernel(x):\n    t = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)\n",
    ),
    "hbm-output": (
        "def kernel(x):\n    return nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.hbm)\n",
        2,
        "def kernel(x):\n    return nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.shared_hbm)\n",
    ),
    "removed-parameter": (
        "def kernel(x, y):\n    nisa.dma_copy(dst=x, src=y, dst_rmw_op=nl.add)\n",
        2,
        "def kernel(x, y):\n    nisa.dma_compute(dst=x, srcs=[x, y], reduce_op=nl.add)\n",
    ),
    "removed-parameter_of_sendrecv": (
        "def kernel(x, y):\n    nisa.sendrecv(x, y, 0, 1, 0, use_gpsimd_dma=True)\n",
        2,
        "def kernel(x, y):\n    nisa.sendrecv(x, y, 0, 1, 0, dma_engine=nisa.dma_engine.dma)\n",
    ),
    "removed-parameter_of_register_move": (
        "def kernel(r):\n    nisa.register_move(r, imm=3)\n",
        2,
        "def kernel(r):\n    nisa.register_move(r, src=3)\n",
    ),
    "affine-select-offset": (
        "def kernel(x):\n    nisa.affine_select(x, [[1, 2]], 0, 0, x, 0.0)\n",
        2,
        "def kernel(x):\n    nisa.affine_select(x, [[1, 2]], 0, on_true_tile=x)\n",
    ),
    "removed-function": (
        "def kernel(x, y):\n    nisa.tensor_copy_dynamic_src(x, y)\n",
        2,
        "def kernel(x, y):\n    nisa.tensor_copy(x, y)\n",
    ),
    "old-namespace": (
        "def kernel(x):\n    import neuronxcc.nki.language as nl\n    return x\n",
        2,
        "def kernel(x):\n    return nl.add(x, x)\n",
    ),
    "no-such-instruction": (
        "def kernel(x):\n    return nl.divide(x, x)\n",
        2,
        "def kernel(x):\n    return nl.multiply(x, nl.reciprocal(x))\n",
    ),
    "no-such-instruction_mod": (
        "def kernel(x):\n    return nl.mod(x, x)\n",
        2,
        "def kernel(x):\n    return 7 % 4\n",
    ),
    "scalar-power": (
        "def kernel(x):\n    return nl.power(x, 2)\n",
        2,
        "def kernel(x):\n    return nl.power(x, x)\n",
    ),
    "plain-matmul": (
        "def kernel(x):\n    return nl.matmul(x, x)\n",
        2,
        "def kernel(x):\n    return nl.matmul(x, x, transpose_x=True)\n",
    ),
    "dynamic-range": (
        "def kernel(n):\n    for i in nl.dynamic_range(n):\n        pass\n",
        2,
        "def kernel(n):\n    for i in nl.affine_range(4):\n        pass\n",
    ),
    "loop-result": (
        "def kernel(n):\n    def body(i):\n        return i\n    nl.fori_loop(0, n, body)\n",
        3,
        "def kernel(n):\n    def body(i):\n        pass\n    nl.fori_loop(0, n, body)\n",
    ),
    "loop-step": (
        "def kernel(n, body):\n    nl.fori_loop(0, n, body, step=-1)\n",
        2,
        "def kernel(n, body):\n    nl.fori_loop(0, n, body, step=2)\n",
    ),
    "base-class": (
        "class Sizes:\n    n: int = 1\n\ndef kernel(x):\n    return Sizes()\n",
        1,
        "class Sizes(NKIObject):\n    n: int = 1\n\ndef kernel(x):\n    return Sizes()\n",
    ),
    "base-class_two": (
        "class A(NKIObject):\n    pass\n\nclass B(A, NKIObject):\n    pass\n\n"
        "def kernel(x):\n    return B()\n",
        4,
        "class E(Enum):\n    a = 1\n\ndef kernel(x):\n    return E.a\n",
    ),
    "dictionary-key": (
        "def kernel(x):\n    return {1: x}\n",
        2,
        "def kernel(x):\n    return {'a': x}\n",
    ),
    "value": ("def kernel(x):\n    return {1, 2}\n", 2, "def kernel(x):\n    return [1, 2]\n"),
    "value_bytes": ("def kernel(x):\n    return b'1'\n", 2, "def kernel(x):\n    return '1'\n"),
    "value_complex": ("def kernel(x):\n    return 2j\n", 2, "def kernel(x):\n    return 2.0\n"),
    "statement": (
        "def kernel(x):\n    try:\n        return x\n    finally:\n        print(x)\n",
        2,
        "def kernel(x):\n    while False:\n        print(x)\n",
    ),
    "statement_with": (
        "def kernel(x):\n    with open(x):\n        return x\n",
        2,
        "def kernel(x):\n    with nl.no_reorder():\n        return x\n",
    ),
    "statement_raise": (
        "def kernel(x):\n    raise ValueError(x)\n",
        2,
        "def kernel(x):\n    assert x, 'x'\n",
    ),
    "statement_yield": (
        "def kernel(x):\n    yield x\n",
        2,
        "def kernel(x):\n    return x\n",
    ),
    "outer-state": (
        "n = 1\n\ndef kernel(x):\n    global n\n    n = 2\n",
        4,
        "n = 1\n\ndef kernel(x):\n    return n\n",
    ),
    "statement_with-argument": (
        "def kernel(x):\n    with nl.no_reorder(x):\n        return x\n",
        2,
        "def kernel(x):\n    with nl.no_reorder():\n        return x\n",
    ),
    "loop-variable": (
        "def kernel(n):\n    def body(i):\n        print(i + 1)\n    nl.fori_loop(0, n, body)\n",
        3,
        "def kernel(n, x):\n    def body(i):\n        x.ap([[1, 1]], scalar_offset=i)\n"
        "    nl.fori_loop(0, n, body)\n",
    ),
    "loop-variable_assigned": (
        "def kernel(n):\n    def body(i):\n        i = 0\n    nl.fori_loop(0, n, body)\n",
        3,
        "def kernel(n):\n    def body(i):\n        j = 0\n    nl.fori_loop(0, n, body)\n",
    ),
    "register-select": (
        "def kernel(n, x):\n    def body(i):\n        print(x.select(0, i))\n"
        "    nl.fori_loop(0, n, body)\n",
        3,
        "def kernel(n, x):\n    def body(i):\n        print(x.select(0, 1))\n"
        "    nl.fori_loop(0, n, body)\n",
    ),
    "loop-body": (
        "def kernel(n):\n    def body(i):\n        pass\n    nl.fori_loop(0, n, body)\n",
        2,
        "def body(i):\n    pass\n\ndef kernel(n):\n    nl.fori_loop(0, n, body)\n",
    ),
    "loop-target": (
        "def kernel(x):\n    for a, b in x:\n        print(a, b)\n",
        2,
        "def kernel(x):\n    for pair in x:\n        a, b = pair\n",
    ),
    "loop-target_attribute": (
        "def kernel(x):\n    for x.a in (1, 2):\n        pass\n",
        2,
        "def kernel(x):\n    for a in (1, 2):\n        x.a = a\n",
    ),
    "comprehension": (
        "def kernel(x):\n    return [a for a in x]\n",
        2,
        "def kernel(x):\n    y = []\n    for a in x:\n        y.append(a)\n    return y\n",
    ),
    "comprehension_generator": (
        "def kernel(x):\n    return tuple(a for a in x)\n",
        2,
        "def kernel(x):\n    return tuple(x)\n",
    ),
    "inner-function": (
        "def kernel(x):\n    def helper(y):\n        return y\n    return x\n",
        2,
        "def helper(y):\n    return y\n\ndef kernel(x):\n    return helper(x)\n",
    ),
    "inner-call": (
        "def kernel(n):\n    def body(i):\n        pass\n"
        "    nl.fori_loop(0, n, body)\n    body(0)\n",
        5,
        "def body(i):\n    pass\n\ndef kernel(n):\n    nl.fori_loop(0, n, body)\n    body(0)\n",
    ),
    "sort": (
        "def kernel(x):\n    return sorted(x)\n",
        2,
        "def sorted(x):\n    return x\n\ndef kernel(x):\n    return sorted(x)\n",
    ),
    "sort_method": (
        "def kernel(x):\n    x.sort()\n    return x\n",
        2,
        "def kernel(x):\n    x.reverse()\n    return x\n",
    ),
    "integer-method": (
        "def kernel(x):\n    n = x.shape[0]\n    return n.bit_length()\n",
        2 + 1,
        "def kernel(x):\n    n = x.shape[0]\n    return n // 2\n",
    ),
    "nested-argument": (
        "def kernel(x):\n    return x.sizes.count\n",
        2,
        "def kernel(x):\n    sizes = x.sizes\n    return sizes.count + x.tile.shape[0]\n",
    ),
    "lambda": (
        "def kernel(x):\n    y = lambda a: a\n    return x\n",
        2,
        "def y(a):\n    return a\n\ndef kernel(x):\n    return y(x)\n",
    ),
    "walrus": (
        "def kernel(x):\n    if (n := x.shape[0]) > 1:\n        return n\n",
        2,
        "def kernel(x):\n    n = x.shape[0]\n    if n > 1:\n        return n\n",
    ),
    "matrix-operator": (
        "def kernel(x):\n    return x @ x\n",
        2,
        "def kernel(x):\n    return x * x\n",
    ),
    "matrix-operator_assigning": (
        "def kernel(x):\n    x @= x\n",
        2,
        "def kernel(x):\n    x *= x\n",
    ),
    "star-argument": (
        "def kernel(x):\n    return print(*x)\n",
        2,
        "def kernel(x):\n    return print(x)\n",
    ),
    "star-argument_keywords": (
        "def kernel(x, y):\n    return print(**y)\n",
        2,
        "def kernel(x, y):\n    return print(sep=y)\n",
    ),
    "star-argument_dictionary": (
        "def kernel(x):\n    return {'a': 1, **x}\n",
        2,
        "def kernel(x):\n    return {'a': 1, 'b': x}\n",
    ),
    "star-argument_target": (
        "def kernel(x):\n    a, *b = x\n",
        2,
        "def kernel(x):\n    a, b = x\n",
    ),
    "star-parameter": (
        "def kernel(*x):\n    return x\n",
        1,
        "def kernel(x):\n    return x\n",
    ),
    "star-parameter_keywords": (
        "def kernel(x, **y):\n    return x\n",
        1,
        "def kernel(x, y=None):\n    return x\n",
    ),
    "many-values": (
        "def kernel(x):\n    return min(x, 1, 2)\n",
        2,
        "def kernel(x):\n    return min(min(x, 1), max((1, 2, 3)))\n",
    ),
    "many-values_keyword": (
        "def kernel(x):\n    return max(x, default=1)\n",
        2,
        "def kernel(x):\n    return nl.max(x, axis=1)\n",
    ),
    "large-integer": (
        "def kernel(x):\n    return x + 2147483648\n",
        2,
        "def kernel(x):\n    return x + 2147483647\n",
    ),
    "large-integer_constant": (
        "SKIPPED = 2**32 - 1\n\ndef kernel(x):\n    return x + SKIPPED\n",
        4,
        "SKIPPED = 2.0**32\n\ndef kernel(x):\n    return x + SKIPPED\n",
    ),
    "format-specification": (
        "def kernel(x):\n    print(f'{x:.2f}')\n",
        2,
        "def kernel(x):\n    print(f'{x} {x!r}')\n",
    ),
    "inner-import": (
        "def kernel(x):\n    import math\n    return x\n",
        2,
        "import math\n\ndef kernel(x):\n    return math.ceil(x)\n",
    ),
    "inner-class": (
        "def kernel(x):\n    class A(NKIObject):\n        pass\n    return x\n",
        2,
        "class A(NKIObject):\n    pass\n\ndef kernel(x):\n    return A()\n",
    ),
    "loop-else": (
        "def kernel(x):\n    for a in x:\n        pass\n    else:\n        return x\n",
        2,
        "def kernel(x):\n    for a in x:\n        pass\n    return x\n",
    ),
    "loop-else_while": (
        "def kernel(x):\n    while x:\n        pass\n    else:\n        return x\n",
        2,
        "def kernel(x):\n    while x:\n        pass\n    return x\n",
    ),
    "nested-assignment": (
        "def kernel(x):\n    x.ring.following = 0\n",
        2,
        "def kernel(x):\n    ring = x.ring\n    ring.following = 0\n    x.rings[0].following = 0\n",
    ),
    "nested-assignment_augmented": (
        "def kernel(x):\n    y = x.take()\n    y.ring.following += 1\n",
        3,
        "def kernel(x):\n    x.following += 1\n",
    ),
    "tile-assignment": (
        "def kernel(x):\n    x[0:2, :] = 0\n",
        2,
        "def kernel(x):\n    x[2] = 0\n    x['a'] = 1\n",
    ),
    "tile-assignment_ellipsis": (
        "def kernel(x):\n    x[...] = 0\n",
        2,
        "def kernel(x):\n    y = x[...]\n    return y\n",
    ),
    "tile-assignment_name": (
        "def kernel(x):\n    t = nl.ndarray((1, 1), nl.int32, nl.sbuf)\n    t[0] = x\n",
        3,
        "def kernel(x):\n    t = [nl.ndarray((1, 1), nl.int32, nl.sbuf)]\n    t[0] = x\n",
    ),
    "unpack-target": (
        "def kernel(x):\n    x.a, x.b = 1, 2\n",
        2,
        "def kernel(x):\n    (a, (b, c)) = (1, (2, 3))\n    x.a = a\n",
    ),
    "unpack-target_list": (
        "def kernel(x):\n    [a, b] = x\n",
        2,
        "def kernel(x):\n    a, b = x\n",
    ),
    "chained-assignment": (
        "def kernel(x):\n    x.a = x.b = 1\n",
        2,
        "def kernel(x):\n    x.a = b = c = 1\n",
    ),
    "builtin": (
        "def kernel(x):\n    return sum(x)\n",
        2,
        "def sum(x):\n    return x\n\ndef kernel(x):\n    return sum(x)\n",
    ),
    "builtin_loop": (
        "def kernel(x):\n    for a in enumerate(x):\n        print(a)\n",
        2,
        "def kernel(x, enumerate):\n    for a in enumerate(x):\n        print(a)\n",
    ),
    "range-value": (
        "def kernel(x):\n    return list(range(3))\n",
        2,
        "def kernel(x):\n    for a in range(3):\n        print(a)\n",
    ),
    "range-value_of_nki": (
        "def kernel(x):\n    r = nl.affine_range(3)\n    return r\n",
        2,
        "def kernel(x):\n    for a in nl.affine_range(3):\n        print(a)\n",
    ),
    "list-insert": (
        "def kernel(x):\n    x.insert(0, 1)\n",
        2,
        "class A(NKIObject):\n    def insert(self, x):\n        pass\n\n"
        "def kernel(x):\n    A().insert(x)\n",
    ),
    "list-pop": (
        "def kernel(x):\n    return x.pop(0)\n",
        2,
        "def kernel(x):\n    return x.pop() + x.pop('a')\n",
    ),
    "string-method": (
        "def kernel(x):\n    return x.startswith('a')\n",
        2,
        "import os\n\ndef kernel(x):\n    return os.path.join(x, x)\n",
    ),
    "string-method_literal": (
        "def kernel(x):\n    return 'a'.count(x)\n",
        2,
        "def kernel(x):\n    return x.count('a')\n",
    ),
    "dictionary-name": (
        "def kernel(x):\n    return {x: 1}\n",
        2,
        "def kernel(x):\n    d = {'a': 1}\n    d[x] = 1\n    return d\n",
    ),
    "decorator": (
        "import functools\n\n@functools.cache\ndef helper(x):\n    return x\n\n"
        "def kernel(x):\n    return helper(x)\n",
        4,
        "import dataclasses\n\n@dataclasses.dataclass\nclass A(NKIObject):\n    x: int = 1\n\n"
        "    @staticmethod\n    def f(x):\n        return x\n\n"
        "@nki.jit\ndef kernel(x):\n    return A.f(x)\n",
    ),
    "decorator_property": (
        "class A(NKIObject):\n    @property\n    def f(self):\n        return 1\n\n"
        "def kernel(x):\n    return A().f\n",
        3,
        "class A(NKIObject):\n    def f(self):\n        return 1\n\n"
        "def kernel(x):\n    return A().f()\n",
    ),
    "class-body": (
        "class A(NKIObject):\n    if True:\n        n = 1\n\ndef kernel(x):\n    return A()\n",
        1,
        "class A(NKIObject):\n    'Text.'\n    n = sum([1, 2])\n    m: list = [a for a in (1, 2)]\n"
        "    pass\n\ndef kernel(x):\n    return A()\n",
    ),
    "early-attribute": (
        "def kernel(x):\n    if x[0].shape == (1,):\n        return x\n",
        2,
        "def kernel(x):\n    first = x[0]\n    if first.shape[0] == 1:\n        return x\n",
    ),
    "early-attribute_while": (
        "def kernel(x):\n    while x.get().n > 0:\n        pass\n",
        2,
        "def kernel(x):\n    while x.get() > 0:\n        pass\n",
    ),
    "early-attribute_and": (
        "def kernel(x):\n    return x != None and x[0].flag\n",
        2,
        "def kernel(x):\n    return x[0].flag and x.other\n",
    ),
    "early-attribute_conditional": (
        "def kernel(x):\n    return x.get().n if x != None else 0\n",
        2,
        "def kernel(x):\n    return x.n if x.get().n else 0\n",
    ),
    "early-attribute_for": (
        "def kernel(x):\n    for i in range(x[0].n):\n        print(i)\n",
        2,
        "def kernel(x):\n    n = x[0].n\n    for i in range(n):\n        print(i)\n",
    ),
}

ALSO = {
    "old-namespace": {"inner-import"},
    "statement_raise": {"builtin"},
    "statement_with": {"builtin"},
    "loop-result": {"loop-body"},
    "loop-variable": {"loop-body"},
    "loop-variable_assigned": {"loop-body"},
    "register-select": {"loop-body"},
    "inner-call": {"loop-body"},
}
"""Rules that a case breaks besides its own."""
