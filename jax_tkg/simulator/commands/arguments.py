"""A kernel's arguments from the command line: random arrays, arrays of files, and constants.

An argument is `name=value`, where the value is

- `float32[128,512]`: a random array, standard normal; integers are drawn from 0 to 7, booleans from
  both. `float32[128,512]*0.1` scales it, `int32[64]%100` draws integers below 100;
- `bfloat16` alone: the array of this name in the file that --inputs gives, converted;
- `nl.bfloat16`, or another name of nki.language (nl) or nki.isa (nisa);
- a Python number, string, None, True or False;
- a list or tuple of such values, in brackets or parentheses;
- another word: itself, a string.
"""

import ast
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_tkg.command_line import CommandError
from jax_tkg.simulator import isa, language
from jax_tkg.simulator.launch import Kernel
from jax_tkg.simulator.memory import dtypes
from jax_tkg.simulator.messages import did_you_mean

_MODULES = {"nl": language, "nisa": isa}

_INTEGERS_BELOW = 8


def rank_arguments(
    kernel: Any, given: Sequence[str], files: Sequence[str], ranks: int, seed: int
) -> list[dict[str, Any]]:
    """The keyword arguments of each rank.

    Args:
      kernel: a function or kernel, whose parameters they are compared with.
      given: "name=value" each.
      files: .npz files with arrays by argument name: one for all ranks, or one for each.
      ranks: how many.
      seed: of the random arrays; each rank draws its own.

    Raises:
      CommandError: an argument cannot be understood, is unknown or missing, or a file cannot be
        read.
    """
    if len(files) not in (0, 1, ranks):
        raise CommandError(f"--inputs: expected 1 or {ranks} (one for a rank), got {len(files)}")
    trees = dict(_split(each) for each in given)
    loaded = [_arrays(file) for file in files]
    found = []
    for rank in range(ranks):
        arrays = loaded[rank if len(loaded) > 1 else 0] if loaded else {}
        draw = np.random.default_rng([seed, rank])
        made = {name: _Value(name, draw, arrays).of(tree) for name, tree in trees.items()}
        found.append({**arrays, **made})
    _check_names(kernel, found[0])
    return found


def _split(argument: str) -> tuple[str, ast.expr]:
    name, equals, value = argument.partition("=")
    if not equals or not name.isidentifier():
        raise CommandError(
            f"expected name=value, such as x=float32[128,512], for an argument, got {argument!r}"
        )
    try:
        return name, ast.parse(value, mode="eval").body
    except (SyntaxError, ValueError):
        # A word that is no expression, such as a path.
        return name, ast.Constant(value)


def _arrays(path: str) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CommandError(f"--inputs: {path}: expected an .npz file: {error}") from None
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise CommandError(f"--inputs: {path}: expected an .npz file, got a single array")
    with content:
        return {name: content[name] for name in content.files}


class _Value:
    """Makes the value of one argument on one rank."""

    def __init__(self, name: str, draw: np.random.Generator, arrays: Mapping[str, np.ndarray]):
        self._name = name
        self._draw = draw
        self._arrays = arrays

    def of(self, tree: ast.expr) -> Any:
        """The value that an expression stands for."""
        if isinstance(tree, (ast.List, ast.Tuple)):
            items = [self.of(item) for item in tree.elts]
            return items if isinstance(tree, ast.List) else tuple(items)
        if isinstance(tree, ast.Subscript):
            return self._random(tree)
        if isinstance(tree, ast.BinOp) and isinstance(tree.left, ast.Subscript):
            number = ast.literal_eval(tree.right)
            if isinstance(tree.op, ast.Mod):
                return self._random(tree.left, number)
            if isinstance(tree.op, ast.Mult):
                array = self._random(tree.left)
                return (array.astype(np.float32) * number).astype(array.dtype)
        if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
            module = _MODULES.get(tree.value.id)
            if module is not None:
                return self._constant(module, tree.value.id, tree.attr)
        if isinstance(tree, ast.Name):
            return self._converted(tree.id) if tree.id in dtypes.DTYPES else tree.id
        try:
            return ast.literal_eval(tree)
        except ValueError:
            raise self._error(f"expected a value, got {ast.unparse(tree)}") from None

    def _random(self, tree: ast.Subscript, below: int = _INTEGERS_BELOW) -> np.ndarray:
        try:
            info = dtypes.info(ast.unparse(tree.value))
            shape = ast.literal_eval(tree.slice)
        except (TypeError, ValueError):
            name = ast.unparse(tree.value)
            near = did_you_mean(name, dtypes.DTYPES)
            raise self._error(f"expected dtype[sizes], got {ast.unparse(tree)}{near}") from None
        sizes = shape if isinstance(shape, tuple) else (shape,)
        if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise self._error(f"expected positive sizes, got {ast.unparse(tree)}")
        if info.kind == "bool":
            return self._draw.random(sizes) < 0.5
        if info.kind == "float":
            return self._draw.standard_normal(sizes).astype(info.storage)
        return self._draw.integers(0, below, sizes).astype(info.storage)

    def _converted(self, dtype: str) -> np.ndarray:
        if self._name not in self._arrays:
            raise self._error(f"expected an array of this name in --inputs to make {dtype} of")
        array, storage = self._arrays[self._name], dtypes.info(dtype).storage
        # NumPy's files hold ml_dtypes' elements as bytes of no type.
        is_untyped = array.dtype.kind == "V" and array.dtype.itemsize == storage.itemsize
        return array.view(storage) if is_untyped else array.astype(storage)

    def _constant(self, module: Any, short: str, name: str) -> Any:
        if not hasattr(module, name):
            near = did_you_mean(name, module.__all__)
            raise self._error(f"{short} has no {name!r}{near}")
        return getattr(module, name)

    def _error(self, message: str) -> CommandError:
        return CommandError(f"argument {self._name!r}: {message}")


def _check_names(kernel: Any, given: Mapping[str, Any]) -> None:
    function = kernel.function if isinstance(kernel, Kernel) else kernel
    signature = inspect.signature(function)
    names = list(signature.parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in given:
        if name not in names and not takes_any:
            raise CommandError(
                f"argument {name!r}: the kernel has no such parameter{did_you_mean(name, names)} "
                f"(it has {', '.join(names)})"
            )
    for name, parameter in signature.parameters.items():
        is_needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if is_needed and name not in given:
            raise CommandError(
                f"argument {name!r} is missing: the kernel is {function.__name__}{signature}; give "
                f"{name}=float32[128,512], or a file with --inputs"
            )
