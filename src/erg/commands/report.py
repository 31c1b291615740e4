"""erg report: one page to look at."""

from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(report_, args=list(arguments), prog="erg report")


def report_(
    run: Path,
    /,
    *,
    out: Path | None = None,
    redraw: bool = False,
    method: str | None = None,
    device: str | None = None,
) -> int:
    """Write report.html from the files of a run.

    Args:
        run: the run folder.
        out: the file to write; report.html in the run folder if not given.
        redraw: make the map, the neighbours and the views again from the run's data.
        method: to redraw; repeats a method given by path, which is code.
        device: to redraw; cpu, cuda or mps; what is there if not given.
    """
    from erg.commands.options import given, where
    from erg.commands.show import tell
    from erg.report.build import write_report

    of_model = given(method=method, device=device)
    if of_model and not redraw:
        options = " ".join(f"--{name} {value}" for name, value in of_model.items())
        raise ValueError(
            f"a page is written without the code of a method, so {options} changes nothing. Leave "
            "it out, or add --redraw."
        )
    if redraw:
        from dataclasses import replace

        from erg.apply.embed import open_for
        from erg.apply.pictures import draw_pictures
        from erg.data.source import open_source
        from erg.train.data import with_masks
        from erg.train.fitted import load

        fitted = load(run, method=method, device=str(where(device)))
        if not fitted.run.data:
            raise ValueError(
                "the run was made from data in memory, which are not there any more. Leave out "
                "--redraw."
            )
        source = open_source(fitted.run.data, label=fitted.run.label)
        opened = open_for(fitted.encoder, source, label=fitted.run.label, tell=tell)
        images = with_masks(fitted, opened.images, opened.manifest, source)
        draw_pictures(fitted, replace(opened, images=images))
    tell(f"Look at {write_report(run, out)}")
    return 0
