"""Files that would run something when read the usual way: refused, in one line, and not run."""

import ast
import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import erg
from erg.cli import COMMANDS
from erg.data.manifest import Manifest
from erg.data.source import open_source
from erg.embeddings import Embeddings
from erg.encoders import build_encoder, load_encoder
from erg.train.checkpoint import load_checkpoint
from erg.train.folder import RunFolder

SOURCE = Path(erg.__file__).parent
# A table for spreadsheets could hold formulas: none is written.
TABLES = {"csv", "openpyxl", "xlsxwriter"}
UNPICKLING = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
    "read_pickle",
}  # fmt: skip
# Which argument of a call says whether objects are unpickled.
ALLOWING = {"numpy.load": 2, "numpy.lib.format.read_array": 1}
LOADING = {"torch.load", "torch.serialization.load"}
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.jit.load",
    "torch.export.load", "torch.package.load",
}  # fmt: skip


def imported(tree: ast.AST) -> dict[str, str]:
    """What names of a piece of code stand for, as far as they are imported."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def offences(code: str) -> Iterator[str]:
    """What in a piece of code could run what a file says."""
    tree, forbidden = ast.parse(code), UNPICKLING | TABLES | {"yaml"}
    known = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = {part for alias in node.names for part in alias.name.split(".")}
            names |= {*module.split(".")} if module else set()
            yield from sorted(names & forbidden)
        if isinstance(node, ast.Attribute) and node.attr in UNPICKLING:
            yield node.attr
        if not isinstance(node, ast.Call):
            continue
        first, *others = ast.unparse(node.func).split(".")
        name = ".".join([known.get(first, first), *others])
        given = [ast.unparse(argument) for argument in node.args]
        told = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in NEVER:
            yield name
        if name == "importlib.import_module" and may_be(node.args, forbidden):
            yield name
        if name in LOADING and told.get("weights_only") != "True":
            yield name
        if told.get("weights_only", "True") != "True":
            yield "weights_only"
        if told.get("allow_pickle", "False") != "False":
            yield "allow_pickle"
        if name in ALLOWING:
            unseen = None in told or any(text.startswith("*") for text in given)
            if unseen or {*given[ALLOWING[name] :][:1]} - {"False"}:
                yield name
        if told.get("shell", "False") != "False":
            yield "shell"
        if name.endswith((".to_csv", ".write_csv")):
            yield name


def may_be(arguments: list[ast.expr], forbidden: set[str]) -> bool:
    """Whether a module that is imported by its name may be one of these."""
    name = arguments[0] if arguments else None
    if isinstance(name, ast.JoinedStr):
        return not ast.unparse(name)[2:].startswith("erg.")
    if isinstance(name, ast.Constant):
        return bool({*str(name.value).split(".")} & forbidden)
    return name is None or ast.unparse(name) not in ("COMMANDS[name][0]", "_HOME[name]")


def test_no_line_of_ours_can_run_a_file() -> None:
    found = {
        str(path.relative_to(SOURCE)): list(offences(path.read_text()))
        for path in SOURCE.rglob("*.py")
    }
    assert len(found) > 50
    assert {path: what for path, what in found.items() if what} == {}
    named = {*erg._HOME.values(), *(module for module, _ in COMMANDS.values())}
    assert all(name.startswith("erg.") for name in named)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "import yaml.scanner", "eval(x)", "exec(x)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=safe)",
        "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)", "run(x, shell=True)",
        "import csv", "from pyarrow import csv", "import pyarrow.csv", "table.to_csv(f)",
        "os.system(x)", "torch.jit.load(f)", "load(f, weights_only=False)",
        "from torch import load; load(f)", "from torch import load as read; read(f)",
        "import torch as t; t.load(f)", "torch.serialization.load(f)",
        "from torch.serialization import load; load(f)", "from os import system; system(x)",
        "import numpy as np; np.load(f, None, True)", "import numpy; numpy.load(f, None, x)",
        "from numpy import load; load(f, 'r', True)", "import numpy as np; np.load(*given)",
        "import numpy as np; np.load(f, **given)", "from numpy.lib import format as form\n"
        "form.read_array(f, True)", "importlib.import_module('pickle')", "__import__(x)",
        "from importlib import import_module as get; get('dill.source')",
        "import importlib; importlib.import_module(name)", "importlib.import_module(f'{x}.erg.')",
        "import pandas as pd; pd.read_pickle(f)", "torch.serialization.pickle.loads(x)",
        "from pandas import read_pickle",
    ],
)  # fmt: skip
def test_the_search_can_fail(code: str) -> None:
    assert list(offences(code))


def test_the_search_lets_through_what_runs_nothing() -> None:
    assert not list(offences("torch.load(f, weights_only=True); np.load(f, allow_pickle=False)"))
    assert not list(offences("import numpy as np; np.load(f, None, False); np.load(f, 'r')"))
    assert not list(offences("from safetensors.torch import load; load(f)"))
    assert not list(offences("import importlib; importlib.import_module(f'erg.methods.{name}')"))


class Gadget:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.canary,))


class Code(Gadget):
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (exec, (f"open({str(self.canary)!r}, 'w').close()",))


class Shell(Gadget):
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        import os

        return (os.system, (f"touch {self.canary}",))


def in_memory(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return in_memory(write)


def tarred(members: dict[str, bytes]) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return in_memory(write)


def objects(canary: Path) -> bytes:
    array = np.array([Gadget(canary)], dtype=object)
    return in_memory(lambda s: np.save(s, array, allow_pickle=True))


MALICIOUS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda c: pickle.dumps(Shell(c)),
    "builtins.exec": lambda c: pickle.dumps(Code(c)),
    "the first protocol": lambda c: pickle.dumps(Gadget(c), protocol=0),
    "torch.save": lambda c: in_memory(lambda s: torch.save({"w": Gadget(c)}, s)),
    "torch.save as it was": lambda c: in_memory(
        lambda s: torch.save(Gadget(c), s, _use_new_zipfile_serialization=False)
    ),
    "a legacy tar": lambda c: tarred(
        {"pickle": pickle.dumps(Gadget(c)), "storages": b"", "tensors": b""}
    ),
    "a zip in a zip": lambda c: zipped({"a.zip": zipped({"data.pkl": pickle.dumps(Code(c))})}),
    "an _instantiator": lambda c: in_memory(
        lambda s: torch.save({"state_dict": {}, "hyper_parameters": {"_instantiator": Code(c)}}, s)
    ),
    "metadata of a sharded checkpoint": lambda c: pickle.dumps({"state_dict_metadata": Gadget(c)}),
    "joblib": lambda c: b"\x80\x04" + pickle.dumps(Gadget(c), protocol=4)[2:],
    "an .npy of objects": objects,
    "a .pt2": lambda c: zipped(
        {"archive_format": b"pt2", "data/weights/model.pt": pickle.dumps(Gadget(c))}
    ),
}


def as_checkpoint(content: bytes, folder: Path) -> object:
    place = folder / "checkpoints"
    place.mkdir()
    (place / "step_000000001.safetensors").write_bytes(content)
    (place / "step_000000001.sha256").write_text(hashlib.sha256(content).hexdigest())
    return load_checkpoint(place, torch.nn.Linear(1, 1), None)


def as_encoder(content: bytes, folder: Path) -> object:
    from erg.encoders import save_encoder

    save_encoder(build_encoder("conv", 16, width=4, stages=2), folder)
    (folder / "model.safetensors").write_bytes(content)
    return load_encoder(folder)


def as_weights(content: bytes, folder: Path, name: str = "a.safetensors") -> object:
    (folder / name).write_bytes(content)
    return build_encoder("resnet18", 32, init=str(folder / name))


def as_embeddings(content: bytes, folder: Path) -> object:
    (folder / "a.parquet").write_bytes(content)
    return Embeddings.load(folder / "a.parquet")


def as_manifest(content: bytes, folder: Path) -> object:
    (folder / "manifest.parquet").write_bytes(content)
    return Manifest.load(folder / "manifest.parquet")


def as_run(content: bytes, folder: Path) -> object:
    (folder / "run.json").write_bytes(content)
    return RunFolder(folder).read_run()


def as_array(content: bytes, folder: Path) -> object:
    (folder / "a.npy").write_bytes(content)
    return open_source(str(folder / "a.npy"))


READERS = [
    as_checkpoint, as_encoder, as_weights, as_embeddings, as_manifest, as_run, as_array,
    lambda content, folder: as_weights(content, folder, "a.pt"),
    lambda content, folder: as_weights(content, folder, "a.ckpt"),
]  # fmt: skip


@pytest.mark.parametrize("make", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_nothing_is_run_by_any_reader(make: Callable[[Path], bytes], tmp_path: Path) -> None:
    assert len(MALICIOUS) == 12
    canary = tmp_path / "canary"
    content = make(canary)
    canary.unlink(missing_ok=True)
    for number, read in enumerate(READERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ValueError, match=r".+") as refused:
            read(content, folder)
        assert "\n" not in str(refused.value)
        assert not canary.exists(), number


HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202egnp\u2066\x08\x00[red]{x}\udcff=1+1.png"


def test_names_do_nothing_on_a_terminal(tmp_path: Path, capsys) -> None:
    from erg.cli import main
    from erg.commands.show import inert, tell, warn

    for say in (tell, warn):
        say(HOSTILE)
        printed = capsys.readouterr().out
        assert printed == inert(HOSTILE) + "\n"
        assert printed[:-1].isprintable()
        for shown in (r"\x1b]0;title\x07", r"\x9b31m\r\u202egnp", r"\x00[red]{x}\udcff=1+1.png"):
            assert shown in printed
    assert inert("Möwe 5 × 3, 日本\n\tà") == "Möwe 5 × 3, 日本\n\tà"
    assert main(["embed", str(tmp_path), str(tmp_path / HOSTILE.replace("\0", ""))]) == 2
    assert main(["pretrain", str(tmp_path / HOSTILE.replace("\0", "")), "--no-report"]) == 3
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("erg: ")
        assert line.isprintable()


@pytest.mark.parametrize("kind", [Gadget, Code, Shell])
def test_the_canary_can_sing(kind: type[Gadget], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(kind(canary)))
    assert canary.exists()
