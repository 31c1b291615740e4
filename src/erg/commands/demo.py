"""erg demo: from nothing to a page to look at, in two minutes on a laptop."""

from collections.abc import Sequence
from pathlib import Path

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(demo, args=list(arguments), prog="erg demo")


def demo(*, out: Path = Path("demo"), images: int = 6000, seconds: float = 60.0) -> int:
    """Make a small world of pictures, learn from it without labels, and judge the result.

    The pictures show a shape each; shape, colour, texture, place, size, background and light vary
    freely. Training never sees what the shapes are; the scores at the end ask for them.

    Args:
        out: the run folder.
        images: pictures to make.
        seconds: of training.
    """
    from erg.commands.pretrain import Options, pretrain
    from erg.commands.show import tell

    tell(f"Making {images} pictures of shapes in free colours, textures, places and light.")
    options = Options(
        data=f"synthetic:{images}", out=_free(out), label="shape", minutes=seconds / 60
    )
    return pretrain(options, lambda _: {}, [])


def _free(out: Path) -> Path:
    """The folder itself, or with the first number that is not taken."""
    number, path = 1, out
    while path.exists():
        number += 1
        path = out.with_name(f"{out.name}-{number}")
    return path
