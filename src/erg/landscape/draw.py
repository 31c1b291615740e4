"""How figures look: two themes, and the few marks that all of them are made of.

Letters in shapes: n points or images, h w rows and columns.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from erg.durable import write_atomically
from erg.landscape.fields import Grid

ENDINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Theme:
    """Colours, those of the report's page.

    Args:
        paper: behind everything.
        ink: text and curves of the truth.
        quiet: axes and captions.
        rule: lines of the grid.
        colours: of series, in order.
        data: of data points on an energy map.
        brightest: how far colour maps of energies go, where 1 is white.
    """

    paper: str
    ink: str
    quiet: str
    rule: str
    colours: tuple[str, ...]
    data: str = "#ff5fa2"
    brightest: float = 1.0

    def settings(self) -> Any:
        """For matplotlib."""
        from cycler import cycler

        return {
            "figure.facecolor": self.paper, "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper, "text.color": self.ink, "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink, "axes.edgecolor": self.quiet, "xtick.color": self.quiet,
            "ytick.color": self.quiet, "grid.color": self.rule, "axes.grid": False,
            "axes.prop_cycle": cycler(color=self.colours), "font.family": "sans-serif",
            "font.size": 10.0, "axes.titlesize": 11.0, "axes.titlelocation": "left",
            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
            "lines.linewidth": 1.8, "svg.hashsalt": "erg", "image.interpolation": "nearest",
        }  # fmt: skip


THEMES = {
    "light": Theme(
        "#ffffff", "#1f2328", "#5f6670", "#e4e1da",
        ("#2f6fb5", "#dd7a26", "#3b9455", "#c9453e", "#8360b5", "#8c6047"),
    ),
    "dark": Theme(
        "#14171b", "#e4e6e9", "#9aa2ad", "#2d333b",
        ("#6ea8e8", "#f0a05c", "#6cc283", "#ee7d75", "#b197e0", "#c39a80"), brightest=0.8,
    ),
}  # fmt: skip


class Canvas:
    """A picture in the making.

    Args:
        size: width and height [inches].
        theme: its colours.
    """

    def __init__(self, size: tuple[float, float], theme: Theme) -> None:
        from matplotlib.figure import Figure as Picture

        self.theme = theme
        self.picture: Any = Picture(figsize=size, layout="constrained")

    def panels(self, rows: int, columns: int, **options: Any) -> Any:
        """Axes [rows columns]; options of `matplotlib.figure.Figure.subplots`."""
        return self.picture.subplots(rows, columns, squeeze=False, **options)

    def map(
        self,
        ax: Any,
        where: Grid,
        levels: np.ndarray,
        *,
        low: float | None = None,
        top: float | None = None,
        contours: int = 10,
        colours: str = "bone",
        bar: str = "",
    ) -> None:
        """An energy map, dark where it is low.

        Args:
            ax: the panel.
            where: the grid.
            levels: F on it [h w].
            low: smallest value told apart; by default the smallest there is.
            top: largest value told apart; by default the largest there is.
            contours: lines of equal energy.
            colours: of matplotlib, from black to white.
            bar: what the colours mean; nothing for no bar.
        """
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        shades = colormaps[colours](np.linspace(0, self.theme.brightest, 256))
        top = float(levels.max()) if top is None else top
        low = float(levels.min()) if low is None else low
        image = ax.imshow(
            levels, origin="lower", extent=where.extent, cmap=ListedColormap(shades),
            vmin=low, vmax=top, interpolation="bilinear", aspect="equal",
        )  # fmt: skip
        if contours:
            at = np.linspace(low, top, contours + 2)[1:-1]
            lines = {"colors": "white", "linewidths": 0.5, "alpha": 0.45}
            ax.contour(where.x, where.y, levels, levels=at, **lines)
        if bar:
            more = "max" if levels.max() > top else "neither"
            self.picture.colorbar(image, ax=ax, label=bar, shrink=0.85, extend=more)
        self.frame(ax)

    def frame(self, ax: Any) -> None:
        """All four sides drawn, quietly, around a map."""
        for side in ax.spines.values():
            side.set_visible(True)
            side.set_color(self.theme.rule)

    def dots(
        self, ax: Any, points: np.ndarray, colour: str = "", size: float = 6, **options: Any
    ) -> None:
        """Points [n 2]."""
        options = {"linewidths": 0, "zorder": 3, **options}
        ax.scatter(*points.T, s=size, color=colour or self.theme.data, **options)

    def classes(self, ax: Any, points: np.ndarray, labels: np.ndarray, size: float = 9) -> None:
        """Points [n 2] in the colours of their classes, whose numbers stand in their middles."""
        from matplotlib.patheffects import withStroke

        around = [withStroke(linewidth=3, foreground=self.theme.paper)]
        ax.scatter(*points.T, c=labels, cmap="tab10", s=size, linewidths=0)
        for label in np.unique(labels):
            x, y = np.median(points[labels == label], axis=0)
            ax.text(
                x, y, str(label), color=self.theme.ink, ha="center", va="center", weight="bold",
                path_effects=around,
            )  # fmt: skip

    def arrows(
        self, ax: Any, start: np.ndarray, move: np.ndarray, colour: str, **options: Any
    ) -> None:
        """Arrows in the units of the axes, from points [n 2] by moves [n 2]."""
        ax.quiver(
            *start.T, *move.T, color=colour, angles="xy", scale_units="xy", scale=1,
            **{"width": 0.003, "zorder": 4, **options},
        )  # fmt: skip

    def image(self, ax: Any, pixels: np.ndarray, colours: str = "gray", **options: Any) -> None:
        """Pixels without axes, [h w] or [h w 3]."""
        ax.imshow(pixels, cmap=colours, **options)
        ax.set(xticks=[], yticks=[])
        self.frame(ax)


def sheet(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Images [n h w] side by side, with a gap of NaN between them."""
    n, h, w = images.shape
    rows = -(-n // columns)
    whole = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap), np.nan)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        whole[y * (h + gap) : y * (h + gap) + h, x * (w + gap) : x * (w + gap) + w] = image
    return whole


def stretched(images: np.ndarray) -> np.ndarray:
    """Each image [n h w] by its largest magnitude, in [-1, 1]: atoms and kernels have no scale."""
    return images / np.abs(images).max(axis=(1, 2), keepdims=True).clip(1e-12)


class Figure(ABC):
    """Numbers, and how they are drawn. A classmethod `compute` of each trains and measures."""

    size: ClassVar[tuple[float, float]] = (7.0, 6.0)
    """Width and height [inches]."""

    @abstractmethod
    def facts(self) -> dict[str, float]:
        """What the picture shows, as numbers by name."""

    @abstractmethod
    def draw(self, canvas: Canvas) -> None:
        """Draw it."""


def render(figure: Figure, path: Path, theme: str, dpi: int) -> Path:
    """Draw a figure into a file; see `erg.landscape.save`."""
    if theme not in THEMES:
        raise ValueError(f"no theme is called {theme!r}. Use {' or '.join(THEMES)}.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name} is no picture's name. End it in {', '.join(ENDINGS)}.")
    try:
        from matplotlib import rc_context
    except ImportError:
        raise ValueError(
            "drawing needs matplotlib, which is not installed. pip install 'erg[landscape]'"
        ) from None
    out = BytesIO()
    with rc_context(THEMES[theme].settings()):
        canvas = Canvas(figure.size, THEMES[theme])
        figure.draw(canvas)
        kind = path.suffix.lower()[1:]
        dates = {"metadata": {"Date": None}} if kind == "svg" else {}
        canvas.picture.savefig(out, format=kind, dpi=dpi, **dates)
    write_atomically(path, out.getvalue())
    return path


def in_words(facts: dict[str, float]) -> list[str]:
    """Facts as lines."""
    return [f"{name}: {value:,.4g}" for name, value in facts.items()]
