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
    theme: Literal["light", "dark"] = "light",
    seed: int = 0,
    method: str | None = None,
    world: str | None = None,
    data: str | None = None,
    label: str | None = None,
    dpi: int = 160,
) -> int:
    """Train what a figure shows, within a minute, and draw it; without a name, list the figures.

    Args:
        name: of the figure.
        out: the picture, .png, .svg or .pdf; NAME.png if not given.
        theme: colours on white, or on black.
        seed: of the world and of the training.
        method: that figure `training` shows; one with an energy of its own, F(y).
        world: that it learns: spiral, moons, ellipse, arcs, bend or mixture.
        data: images for the figures of digits; those of scikit-learn if not given.
        label: where their labels are found.
        dpi: pixels per inch.
    """
    from erg import landscape as figures
    from erg.commands.show import tell
    from erg.landscape.draw import in_words

    if name is None:
        for known, (_, about) in figures.FIGURES.items():
            tell(f"{known:<14}{about}")
        tell("erg landscape NAME --out FILE.png draws one.")
        return 0
    given = {"method": method, "world": world, "data": data, "label": label}
    chosen = {option: value for option, value in given.items() if value is not None}
    found = figures.compute(name, seed=seed, **chosen)
    path = figures.save(found, out or Path(f"{name}.png"), theme=theme, dpi=dpi)
    for line in in_words(found.facts()):
        tell(line)
    tell(f"Drawn: {path}")
    return 0
