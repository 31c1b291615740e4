"""What commands share of their options: those of methods and encoders, checks, places, devices."""

import inspect
import json
import os
import typing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

PREFIX = "--method."
ENCODER_PREFIX = "--encoder."


def split_arguments(arguments: Sequence[str], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Take PREFIX-NAME VALUE (or =VALUE) out of a command's arguments.

    Raises:
        ValueError: a name without a value.
    """
    rest: list[str] = []
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith(prefix):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix(prefix).partition("=")
        if not equals:
            value = next(words, "")
        if not value:
            raise ValueError(f"{word} has no value. Write {prefix}{name} VALUE.")
        found[name.replace("-", "_")] = value
    return rest, found


def encoder_arguments(given: dict[str, str]) -> dict[str, Any] | None:
    """Numbers, true, false and [lists] as such, anything else as text; None if nothing is given."""
    found: dict[str, Any] = {}
    for name, text in given.items():
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    return found or None


def method_arguments(method: str | None, given: dict[str, str]) -> dict[str, Any]:
    """Text as the types of a method's signature say.

    A schedule is written as its ends, 0.996:1, and then runs along half a cosine.

    Raises:
        ValueError: an unknown name, or a value of another type.
    """
    if not given:
        return {}
    if method is None:
        raise ValueError(f"{PREFIX}{next(iter(given))} needs --method NAME. See: erg methods.")
    from erg import catalog

    kind = catalog.find(method)
    catalog.check_arguments(kind, given)
    known = catalog.arguments(kind)
    hints = {name: type(argument.default) for name, argument in known.items()}
    hints |= typing.get_type_hints(kind.__init__)  # a method of yours may have none
    return {name: _as(hints[name], name, text) for name, text in given.items()}


def _as(hint: Any, name: str, text: str) -> Any:
    from erg.schedule import Cosine, Schedule

    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if inspect.isclass(hint) and issubclass(hint, Schedule):
            start, _, end = text.partition(":")
            return Cosine(float(start), float(end or start))
        if typing.get_origin(hint) is tuple:
            words = text.strip("()[] ").split(",")
            kinds = typing.get_args(hint)
            return tuple(kind(word) for kind, word in zip(kinds, words, strict=True))
        if typing.get_origin(hint) is Literal:
            options = typing.get_args(hint)
            return next(option for option in options if str(option) == text)
        convert: Any = hint
        return convert(text)
    except (KeyError, ValueError, StopIteration, TypeError):
        wanted = getattr(hint, "__name__", str(hint).replace("typing.", ""))
        raise ValueError(f"{PREFIX}{name} should be {wanted} (got {text!r}).") from None


def given(**options: Any) -> dict[str, Any]:
    """Those of the options that stand on the command line: None is what the others are."""
    return {name: value for name, value in options.items() if value is not None}


def without(said: Collection[str], why: str) -> None:
    """Nothing that was said may change nothing.

    Args:
        said: names of options that stand on the command line and have no meaning there.
        why: they have none.

    Raises:
        ValueError: there are such options.
    """
    if said:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in said)
        raise ValueError(f"{options} would change nothing: {why}. Leave out what is named here.")


def is_run(model: Path, method: str | None) -> bool:
    """Whether a model is a run folder; only of a run a method is repeated.

    Args:
        model: a folder.
        method: that is named on the command line.

    Raises:
        ValueError: it is none, and a method is named.
    """
    found = (model / "run.json").exists()
    if not found and method is not None:
        without(["method"], f"{model} is no run folder, whose method it would repeat")
    return found


def beside(out: Path, ending: str, what: str) -> Path:
    """Where something that belongs to a file is written, once both can be.

    Args:
        out: the file, as --out says.
        ending: of the other one, as in .json.
        what: it holds, as in "the numbers are".

    Raises:
        ValueError: it would be the file itself, or the file can have no place there.
    """
    from erg.durable import check_place

    check_place(out)
    other = out.with_suffix(ending)
    if out.suffix.lower() == ending:
        raise ValueError(
            f"{what} written to {other}, so that cannot be the file of --out too. Give it another "
            "ending."
        )
    return other


def check_seed(seed: int | None) -> None:
    """Whether all that is random takes a seed; numpy wants none below 0.

    Raises:
        ValueError: it does not.
    """
    if seed is not None and seed < 0:
        raise ValueError(f"--seed should be at least 0 (got {seed}).")


ACCELERATORS = ("cuda", "mps")
"""Kinds that training takes by itself."""


def where(asked: str | None) -> "torch.device":
    """Where a model is put: as asked, else on the accelerator that training takes, else the CPU.

    Where several processes are at work on this machine and nothing is asked for, an accelerator is
    taken only if each of them gets one of its own.

    Args:
        asked: cpu, cuda or mps, as it stands on the command line.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind, count = "cpu", 0
    if there is not None and there.type in ACCELERATORS:
        kind, count = there.type, torch.accelerator.device_count()
        # As in training: float32 is float32, in convolutions too.
        torch.backends.cudnn.allow_tf32 = False
    if asked is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return torch.device(kind if count >= here else "cpu")
    try:
        wanted = torch.device(asked)
    except RuntimeError as error:
        why = str(error).splitlines()[0][:80]
    else:
        if wanted.type == "cpu" or (wanted.type == kind and (wanted.index or 0) < count):
            return wanted
        why = f"of {kind} there are {count}" if count else "there is only the CPU"
    raise ValueError(
        f"there is no device {asked!r} here ({why}). Choose cpu, cuda or mps; erg doctor shows "
        "which there are."
    )
