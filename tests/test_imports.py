"""What importing costs and what it touches, each in a fresh process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import erg


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("erg", ("torch", "numpy", "numba", "timm", "lightning_fabric")),
        ("erg.cli", ("torch", "numpy", "numba", "timm", "lightning_fabric", "tyro", "rich")),
        ("erg.commands.pretrain", ("torch", "numba", "timm", "lightning_fabric")),
        ("erg.methods.simclr", ("numba", "lightning_fabric", "sklearn", "pyarrow")),
        ("erg.catalog", ("numba", "lightning_fabric", "sklearn", "pyarrow")),
        ("erg.report.build", ("torch", "numba", "timm", "lightning_fabric")),
        ("erg.embeddings", ("torch", "numba", "timm", "lightning_fabric")),
    ],
)
def test_what_an_import_leaves_alone(imported: str, absent: tuple[str, ...]) -> None:
    found = fresh(
        f"import sys; import {imported}; print([m for m in {absent!r} if m in sys.modules])"
    )
    assert found == "[]"


def test_no_forbidden_dependency_is_required() -> None:
    from importlib.metadata import requires

    names = [re.split(r"[^\w-]", line)[0] for line in requires("erg") or []]
    assert "lightning" not in names
    assert "lightning-fabric" in names


def test_every_public_name_resolves() -> None:
    assert sorted(erg.__all__) == erg.__all__
    for name in erg.__all__:
        assert getattr(erg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = erg.nothing


def test_one_file_alone_has_compiled_functions() -> None:
    """A cached caller would keep an old callee of another file."""
    folder = Path(erg.__file__).parent
    uses = re.compile(r"^\s*(import|from) numba\b", re.MULTILINE)
    found = [path for path in folder.rglob("*.py") if uses.search(path.read_text())]
    assert found == [folder / "views" / "kernels.py"]


def test_importing_compiles_no_kernel() -> None:
    code = (
        "from erg.views import kernels, make\n"
        "import numba\n"
        "print(sum(len(f.signatures) for f in vars(kernels).values() "
        "if isinstance(f, numba.core.registry.CPUDispatcher)))"
    )
    assert fresh(code) == "0"
