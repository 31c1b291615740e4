"""erg report, from the outside."""

from pathlib import Path

from erg.cli import main
from erg.train.fit import fit
from erg.train.run import Run


def test_pictures_of_a_method_given_by_path_are_made_again_where_it_is_repeated(
    tmp_path: Path, capsys
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("from erg.methods.simclr import SimCLR\n\nclass Mine(SimCLR):\n    pass\n")
    method = f"{code}:Mine"
    run = Run(
        method=method, encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data="synthetic:40", batch=16, steps=1,
    )  # fmt: skip
    folder = fit(run, out=tmp_path / "run", observers=()).folder
    again = ["report", str(folder), "--redraw"]
    assert main(again) == 2
    error = capsys.readouterr().err
    assert "repeat it: --method" in error
    assert method in error
    assert main([*again, "--method", method]) == 0
    assert (folder / "pictures" / "map.json").exists()
    assert main(["report", str(folder), "--method", method]) == 2
    assert "or add --redraw" in capsys.readouterr().err
