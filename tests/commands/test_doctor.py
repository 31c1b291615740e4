"""erg doctor warms the cache of the kernels, and what is compiled is seen to be."""

import io

import pytest
from rich.console import Console

from erg.cli import main
from erg.commands import show
from erg.commands.doctor import facts, problems
from erg.views import kernels


def test_doctor_compiles_and_says_where_that_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(kernels, "compile_kernels", done.append)
    monkeypatch.setattr(kernels, "kept_in", lambda: "a folder")
    assert main(["doctor"]) == 0
    assert len(done) == 1
    assert "compiled, kept in a folder" in capsys.readouterr().out


def test_doctor_says_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "kept_in", lambda: None)
    assert facts()["view kernels"] == "compiled, kept in no folder"
    assert any("NUMBA_CACHE_DIR" in trouble for trouble in problems())
    monkeypatch.setattr(kernels, "kept_in", lambda: "a folder")
    assert not any("NUMBA_CACHE_DIR" in trouble for trouble in problems())


@pytest.mark.parametrize("missing", [0, 3])
def test_a_bar_is_drawn_only_where_something_has_to_be_compiled(
    missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = io.StringIO()
    monkeypatch.setattr(show, "console", Console(file=drawn, force_terminal=True, width=80))
    monkeypatch.setattr(show, "_seen", lambda: True)

    def compile_kernels(progress: kernels.Callable[[int, int], None]) -> None:
        for i in range(missing):
            progress(50 + i, 52)

    monkeypatch.setattr(kernels, "compile_kernels", compile_kernels)
    show.compiling()
    assert ("Compiling, once on this machine" in drawn.getvalue()) == (missing > 0)
    assert ("52/52" in drawn.getvalue()) == (missing > 0)


def test_of_several_processes_the_first_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(kernels, "compile_kernels", done.append)
    for rank, times in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        show.compiling()
        assert len(done) == times
