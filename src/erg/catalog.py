"""The methods by name: found in the folder, in entry points, or at a path the user gives.

There is no registry to keep up: a file in `methods/` with a subclass of Method is in the catalogue,
and so is an entry point in group `erg.methods` of another package.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import types
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import erg.methods
from erg.method import Method
from erg.schedule import Constant, Cosine, Linear, Schedule, Step, WarmupCosine

SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind for kind in (Constant, Linear, Cosine, Step, WarmupCosine)
}


def names() -> list[str]:
    """Names of all methods, ours first, each as its paper spells it."""
    return [*_ours(), *sorted(entry.name for entry in entry_points(group="erg.methods"))]


def find(name: str) -> type[Method]:
    """A method by its name, or by `path/to/file.py:ClassName`.

    A path runs the file it names: callers take it only from the command line, never from a file.

    Raises:
        ValueError: no such method.
    """
    if ".py:" in name:
        return _at_path(*name.rsplit(":", 1))
    ours = _ours()
    if name in ours:
        return ours[name]
    for entry in entry_points(group="erg.methods"):
        if entry.name == name:
            return entry.load()
    folded = {known.lower(): known for known in names()}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(folded[n] for n in near)}?" if near else ""
    raise ValueError(f"no method is called {name!r}. {hint or 'Known: ' + ', '.join(names())}")


def arguments(method: type[Method]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a method: its whole configuration."""
    parameters = inspect.signature(method.__init__).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_arguments(method: type[Method], given: dict[str, Any]) -> None:
    """Refuse unknown arguments with a suggestion.

    Raises:
        ValueError: an argument the method does not have.
    """
    known = arguments(method)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known) or 'none'}."
            raise ValueError(f"{method.__name__} has no argument {name!r}. {hint}")


def _ours() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(erg.methods.__path__):
        found |= _methods_of(importlib.import_module(f"erg.methods.{module.name}"))
    return found


def _methods_of(module: types.ModuleType) -> dict[str, type[Method]]:
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, Method)
        and kind.__module__ == module.__name__
        and not inspect.isabstract(kind)
    }


def _at_path(file: str, name: str) -> type[Method]:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {file}. Write --method path/to/file.py:ClassName.")
    spec = importlib.util.spec_from_file_location(f"erg_method_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = _methods_of(module)
    if name not in found:
        raise ValueError(f"{file} has no method {name!r}. It has {', '.join(found) or 'none'}.")
    return found[name]
