"""Finding the kernel that a command names."""

import importlib
import importlib.util
import pathlib
import sys
import types
from typing import Any

from jax_tkg.command_line import CommandError
from jax_tkg.simulator.install import install
from jax_tkg.simulator.messages import did_you_mean


def find_kernel(name: str) -> Any:
    """The kernel of "package.module:kernel" or "path/to/file.py:kernel".

    `import nki` finds the simulator, unless AWS's package is installed. Modules are looked for in
    the working directory, too, and those beside a file beside it.

    Raises:
      CommandError: there is no such module, file or function; or the module cannot be imported.
    """
    place, colon, attribute = name.rpartition(":")
    if not (place and colon and attribute):
        raise CommandError(f"kernel: expected module:kernel or file.py:kernel, got {name!r}")
    install()
    module = _loaded(place) if place.endswith(".py") else _imported(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        functions = [each for each, value in vars(module).items() if callable(value)]
        raise CommandError(
            f"kernel: {place} has no {attribute!r}{did_you_mean(attribute, functions)}"
        ) from None


def _imported(name: str) -> types.ModuleType:
    _look_in(pathlib.Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name == error.name or name.startswith(f"{error.name}."):
            raise CommandError(f"kernel: there is no module {error.name!r}") from None
        raise CommandError(f"kernel: {name}: {error}") from error
    except (ImportError, AttributeError, SyntaxError) as error:
        raise CommandError(f"kernel: {name}: {error}") from error


def _loaded(path: str) -> types.ModuleType:
    file = pathlib.Path(path).resolve()
    if not file.is_file():
        raise CommandError(f"kernel: {path}: no such file")
    _look_in(file.parent)
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # The language checker looks its classes up by the module's name.
    sys.modules[file.stem] = module
    try:
        specification.loader.exec_module(module)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise CommandError(f"kernel: {path}: {error}") from error
    return module


def _look_in(folder: pathlib.Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
