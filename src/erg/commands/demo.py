"""erg demo: from nothing to a page to look at, in two minutes on a laptop."""

import time
from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(demo, args=list(arguments), prog="erg demo")


def demo(*, out: Path = Path("demo"), images: int = 6000, seconds: float = 70.0) -> int:
    """Make a small world of pictures, learn from it without labels, and judge the result.

    The pictures show a shape each; shape, colour, texture, place, size, background and light vary
    freely. Training never sees what the shapes are; the scores at the end ask for them.

    Args:
        out: the run folder.
        images: pictures to make.
        seconds: of training.
    """
    from dataclasses import replace

    from erg.commands.as_python import python_of
    from erg.commands.pretrain import finish
    from erg.commands.show import compiling, counting, tell, training
    from erg.data.source import open_source
    from erg.train.fit import fit
    from erg.train.run import Optimiser, Run
    from erg.views.plan import SIMCLR_SMALL, two_views

    started = time.monotonic()
    tell(f"Making {images} pictures of shapes in free colours, textures, places and light.")
    # Colours tell single pictures apart and shapes do not: only where colours are of no use does
    # the method look at shapes.
    views = replace(
        SIMCLR_SMALL, crop=(0.5, 1.0), jitter=1.0, brightness=0.6, contrast=0.6, saturation=1.0,
        hue=0.5, grey=0.8, solarise=0.2,
    )  # fmt: skip
    run = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 32, "stages": 4}, image_size=32,
        data=f"synthetic:{images}", label="shape", plan=two_views(views), batch=128,
        optimiser=Optimiser(lr=2e-3, weight_decay=1e-4),
    )  # fmt: skip
    tell(python_of(run, seconds / 60))
    source = open_source(run.data, label=run.label)
    compiling()
    with counting("Making pictures") as prepared, training() as show:
        fitted = fit(
            run, source, _free(out), minutes=seconds / 60, show=show, tell=tell,
            prepared=prepared, started=started,
        )  # fmt: skip
    finish(fitted, source, run.label)
    return 0


def _free(out: Path) -> Path:
    """The folder itself, or with the first number that is not taken."""
    number, path = 1, out
    while path.exists():
        number += 1
        path = out.with_name(f"{out.name}-{number}")
    return path
