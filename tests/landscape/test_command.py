"""erg landscape, from the outside."""

import re
from pathlib import Path

import pytest
from PIL import Image

from erg import landscape
from erg.commands.landscape import main


def test_without_a_name_it_lists_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for name, (_, about) in landscape.FIGURES.items():
        assert f"{name:<14}{about}" in said


def test_it_draws_and_says_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "wells.png"
    assert main(["wells", "--out", str(out), "--theme", "dark", "--dpi", "40"]) == 0
    said = capsys.readouterr().out
    assert "wells: 20" in said
    assert f"Drawn: {out}" in said
    with Image.open(out) as picture:
        assert picture.size == (296, 248)


def test_options_reach_the_figure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no world is called 'sphere'"):
        main(["training", "--world", "sphere"])
    with pytest.raises(ValueError, match="figure wells has no option 'world'"):
        main(["wells", "--world", "moons"])


def test_what_cannot_be_is_said_before_anything_is_drawn(tmp_path: Path, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was computed")

    monkeypatch.setattr(landscape, "compute", never)
    for option in (
        ["--out", "a.png"], ["--theme", "light"], ["--seed", "0"], ["--method", "KMeans"],
        ["--world", "moons"], ["--data", "there"], ["--label", "label"], ["--dpi", "160"],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{option[0]} would change nothing: without a name"):
            main(option)
    for option, said in (
        (["--out", str(tmp_path)], "is a folder"),
        (["--out", str(tmp_path / "no" / "a.png")], "there is no folder"),
        (["--seed", "-1"], "--seed should be at least 0"),
        (["--label", "label"], "--label would change nothing: without --data"),
    ):
        with pytest.raises(ValueError, match=said):
            main(["wells", *option])


def test_every_figure_is_found_and_told_of() -> None:
    page = Path(__file__).parents[2] / "docs" / "landscape.md"
    told = page.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", told, flags=re.M | re.S)
    drawing = [block for block in blocks if 'for theme in ("light", "dark"):\n' in block]
    for name in landscape.FIGURES:
        assert landscape.find(name).__doc__
        assert f"| {name} |" in told
        # In a block that the tests of the documentation execute, and which draws both themes.
        assert any(f'"{name}"' in block for block in drawing), name
