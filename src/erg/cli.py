"""The command line: `erg COMMAND`. Commands are functions; their signatures are the options.

Nothing heavy is imported before a command is known, so that `erg --help` answers at once.
"""

import difflib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": ("erg.commands.demo", "Train on a small made-up world and look at the result."),
    "pretrain": ("erg.commands.pretrain", "Learn an encoder from images without labels."),
    "evaluate": ("erg.commands.evaluate", "Compare a run with before training, PCA and pixels."),
    "embed": ("erg.commands.embed", "Write a vector for every image to a parquet file."),
    "export": ("erg.commands.export", "Write the encoder to be used without erg."),
    "search": ("erg.commands.search", "List what is near a picture, by vectors or binary codes."),
    "anomalies": ("erg.commands.anomalies", "Show the images that fit worst with normal ones."),
    "finetune": ("erg.commands.finetune", "Train a classifier from few labels."),
    "layers": ("erg.commands.layers", "Probe every layer of an encoder."),
    "project": ("erg.commands.project", "Draw maps of embeddings side by side."),
    "denoise": ("erg.commands.denoise", "Take the noise out of a recording of speech."),
    "inpaint": ("erg.commands.inpaint", "Take text and holes out of a picture."),
    "landscape": ("erg.commands.landscape", "Draw the figures of the course from trained models."),
    "report": ("erg.commands.report", "Write report.html, one file to look at."),
    "methods": ("erg.commands.methods", "List the methods, or show one and its arguments."),
    "doctor": ("erg.commands.doctor", "Show versions, devices, memory, disk; warm the cache."),
}

OK, USAGE, DATA, DIVERGED = 0, 2, 3, 4


def usage() -> str:
    """What `erg --help` prints."""
    lines = [
        "usage: erg COMMAND ...",
        "",
        "Learn representations from images without labels.",
        "",
        *(f"  {name:<11}{about}" for name, (_, about) in COMMANDS.items()),
        "",
        "Start with:  erg pretrain FOLDER_OF_IMAGES",
        "Options:     erg COMMAND --help;  erg --version;  --debug shows where an error arose",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    0 fine, 1 an error of erg's own or a process that died, 2 usage, a busy folder or a full disk,
    3 data, 4 diverged, 75 stopped and resumable, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(usage())
        return OK if given else USAGE
    if given[0] == "--version":
        from importlib.metadata import version

        print(f"erg {version('erg')}")
        return OK
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Commands: {', '.join(COMMANDS)}."
        print(f"erg: there is no command {name!r}. {hint}", file=sys.stderr)
        return USAGE
    return _guarded(name, rest, debug)


def _guarded(name: str, rest: list[str], debug: bool) -> int:
    """Run a command; problems become one line and an exit code."""
    import importlib

    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(rest) or OK)
    except KeyboardInterrupt:
        print("\nerg: interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        from erg.commands.show import inert
        from erg.train.launch import first_to_fail, leads, leave

        code, said = _code(error), inert(_one_line(error))
        # All processes are asked to stop together, and one says so; they fail one after another.
        says = leads() if code in (75, 130) else first_to_fail()
        if says and code is not None:
            print(f"erg: {said}", file=sys.stderr)
        elif says:
            print(
                f"erg: {type(error).__name__}: {said} This should not happen; --debug shows where.",
                file=sys.stderr,
            )
        return leave(1 if code is None else code)


def _code(error: Exception) -> int | None:
    """The exit code of a problem that a person can do something about."""
    from erg.data.source import DataError

    if isinstance(error, DataError):
        return DATA
    kind = type(error).__name__  # by name: their modules are heavy and may not be loaded
    if kind == "Stopped":
        return getattr(error, "code", 75)
    if kind == "Diverged":
        return DIVERGED
    if kind in ("Busy", "NoSpace") or isinstance(error, ValueError):
        return USAGE
    if kind == "Lost":
        return 1
    if isinstance(error, OSError):
        return DATA
    return None


def _one_line(error: Exception) -> str:
    notes: list[str] = getattr(error, "__notes__", [])  # of which picture, for one
    told = str(error) or type(error).__name__
    return " ".join((f"{told.rstrip('.')}. {' '.join(notes)}" if notes else told).split())


if __name__ == "__main__":
    sys.exit(main())
