"""erg report: one page to look at."""

from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(report_, args=list(arguments), prog="erg report")


def report_(run: Path, /, *, out: Path | None = None, redraw: bool = False) -> int:
    """Write report.html from the files of a run.

    Args:
        run: the run folder.
        out: the file to write; report.html in the run folder if not given.
        redraw: make the map, the neighbours and the views again from the run's data.
    """
    from erg.commands.show import tell
    from erg.report.build import write_report

    if redraw:
        from erg.apply.embed import open_for
        from erg.apply.pictures import draw_pictures
        from erg.train.fit import load

        fitted = load(run)
        draw_pictures(fitted, open_for(fitted.encoder, fitted.run.data, label=fitted.run.label))
    tell(f"Look at {write_report(run, out)}")
    return 0
