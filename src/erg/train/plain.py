"""Frozen data as the plain data that JSON holds, and back, with the type of every value checked."""

import math
import os
import reprlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np


def plain(value: Any) -> Any:
    """Frozen data as JSON: dataclasses carry their name, infinities are spelled out, paths are text
    and NumPy's numbers Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return {"type": type(value).__name__, **inner}
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        return {"type": "float", "value": str(value)}
    return value


def restored(value: Any, kinds: Mapping[str, type[Any]], place: str) -> Any:
    """Undo `plain`; no data types but those given are ever made.

    Args:
        value: what JSON held.
        kinds: data types by name.
        place: where the value stands.

    Raises:
        ValueError: it is nothing that `plain` has made of these.
    """
    if isinstance(value, list):
        return tuple(restored(inner, kinds, f"{place}[{i}]") for i, inner in enumerate(value))
    if not isinstance(value, dict):
        return value
    inner = {
        name: restored(item, kinds, _within(place, name))
        for name, item in value.items()
        if name != "type"
    }
    name = value.get("type")
    if name is None:
        return inner
    if name == "float":
        if inner not in ({"value": "inf"}, {"value": "-inf"}):
            raise damaged(f"{place} should be the number inf or -inf (got {reprlib.repr(inner)})")
        return float(inner["value"])
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(
            f"a run.json holds no {reprlib.repr(name)}, as at {place}. Known: {', '.join(kinds)}."
        )
    return made(kinds[name], inner, place)


def made(kind: type[Any], given: dict[str, Any], place: str = "") -> Any:
    """Frozen data from its fields, whose values have to be of the types that it names.

    Args:
        kind: a dataclass.
        given: values by field.
        place: where it stands in the run; empty for the run itself.

    Raises:
        ValueError: a field is missing, not known, or of another type.
    """
    for f in fields(kind):
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise damaged(f"{_within(place, f.name)} is missing")
    types_of = get_type_hints(kind)
    for name, value in given.items():
        if name not in types_of:
            raise damaged(f"{_within(place, name)} is nothing that {kind.__name__} has")
        if not fits(value, types_of[name]):
            raise damaged(
                f"{_within(place, name)} should be {in_words(types_of[name])} (got "
                f"{reprlib.repr(value)})"
            )
    return kind(**given)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers are numbers too, True is none."""
    of, inner = get_origin(kind) or kind, get_args(kind)
    if of is Any:
        return True
    if of is Literal:
        return value in inner
    if of in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if of is list:  # JSON has one kind, and both come back as tuples
        of, inner = tuple, (*inner, ...)
    if of is tuple:
        if not isinstance(value, tuple) or inner in ((), (...,)):
            return isinstance(value, tuple)
        if inner[-1] is Ellipsis:
            return all(fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(value, bool):
        return of is bool
    return isinstance(value, int | float if of is float else of)


def in_words(kind: Any) -> str:
    """An annotated type, for somebody who looks at a run.json."""
    of, inner = get_origin(kind) or kind, get_args(kind)
    if of is Literal:
        return " or ".join(map(str, inner))
    if of in (Union, types.UnionType):
        return " or ".join(map(in_words, inner))
    if of is tuple:
        return f"[{', '.join('...' if each is Ellipsis else in_words(each) for each in inner)}]"
    return _WORDS.get(of, f"{{type: {of.__name__}}}")


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "{name: value}",
    type(None): "null",
}


def _within(place: str, name: str) -> str:
    """The place of what has a name at a place, on one line."""
    if not name.isidentifier():
        return f"{place}[{reprlib.repr(name)}]"
    return f"{place}.{name}" if place else name


def damaged(what: str) -> ValueError:
    """The error for what no erg has written."""
    return ValueError(f"the run is damaged: {what}. Correct it, or use the erg that wrote it.")
