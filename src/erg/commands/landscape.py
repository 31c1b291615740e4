"""erg landscape: the figures of the course, drawn from models trained on the spot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(landscape, args=list(arguments), prog="erg landscape")


def landscape(
    name: str | None = None,
    /,
    *,
    out: Path | None = None,
    theme: Literal["light", "dark"] | None = None,
    seed: int | None = None,
    method: str | None = None,
    world: str | None = None,
    data: str | None = None,
    label: str | None = None,
    dpi: int | None = None,
) -> int:
    """Train what a figure shows, within a minute, and draw it; without a name, list the figures.

    Args:
        name: of the figure.
        out: the picture, .png, .svg or .pdf; NAME.png if not given.
        theme: colours on white, or on black; light if not given.
        seed: of the world and of the training; 0 if not given.
        method: that figure `training` shows; one with an energy of its own, F(y).
        world: that it learns: spiral, moons, ellipse, arcs, bend or mixture.
        data: images for the figures of digits; those of scikit-learn if not given.
        label: where their labels are found.
        dpi: pixels per inch; 160 if not given.
    """
    from erg import landscape as figures
    from erg.commands.options import check_seed, given, without
    from erg.commands.show import tell
    from erg.durable import check_place
    from erg.landscape.draw import in_words

    learning = given(seed=seed, method=method, world=world, data=data, label=label)
    drawing = given(theme=theme, dpi=dpi)
    if name is None:
        without(given(out=out) | drawing | learning, "without a name the figures are listed")
        for known, (_, about) in figures.FIGURES.items():
            tell(f"{known:<14}{about}")
        tell("erg landscape NAME --out FILE.png draws one.")
        return 0
    if label is not None and data is None:
        without(["label"], "without --data the digits are those of scikit-learn, with their labels")
    check_seed(seed)
    path = out or Path(f"{name}.png")
    check_place(path)
    found = figures.compute(name, **learning)
    figures.save(found, path, **drawing)
    for line in in_words(found.facts()):
        tell(line)
    tell(f"Drawn: {path}")
    return 0
