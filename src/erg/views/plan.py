"""Plans: frozen data that say which views of an image to make. The kernels carry them out.

Sources of the presets: the official repositories of the papers, as tabulated in their recipes
(SimCLR data_util, BYOL augmentations, SwAV multicropdataset, DINO main_dino). All numbers are
theirs. The operations are torchvision's on float images, and depart from theirs where theirs
depart from each other:

- the resize is bilinear with antialiasing, as SwAV's (SimCLR, BYOL, DINO: bicubic);
- brightness multiplies, as SimCLR's second version (BYOL: adds);
- saturation mixes with grey (BYOL: the S of HSV); hue shifts the H of HSV, as everywhere;
- the blur's kernel ends at a tenth of the side, as SimCLR's and BYOL's (SwAV, DINO: Pillow's blur);
- mean and standard deviation are the encoder's (SwAV: 0.228 for red).
"""

from dataclasses import dataclass, replace
from typing import Literal

from erg.views.types import Pairs

Kind = Literal["image", "array", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which patches of a view to hide.

    Args:
        grid: rows and columns of patches.
        ratio: share hidden; `round(ratio * n)` patches of every image.
        kind: `random`, patches, each equally likely; `blocks`, rectangles put over each other
            until the share is hidden; `inverse`, all but such rectangles; `targets`, rectangles to
            predict from a context, which share and spread have nothing to do with.
        spread: the share of each image is uniform in ratio - spread to ratio + spread.
        masked: probability that an image is masked at all.
        stratified: whether a batch masks exactly that share of its images, and their shares are
            spread evenly over the range: one in each of as many equal parts of it.
        aspect: range of the height / width of a rectangle, drawn log-uniformly.
        targets: number of rectangles to predict.
        area: range of the area of each [fraction of the grid's].
        context: range of the area of the rectangle that is seen but for the targets in it
            [fraction of the grid's].
    """

    grid: tuple[int, int]
    ratio: float = 0.75
    kind: Literal["random", "blocks", "inverse", "targets"] = "random"
    spread: float = 0.0
    masked: float = 1.0
    stratified: bool = False
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    targets: int = 4
    area: tuple[float, float] = (0.15, 0.2)
    context: tuple[float, float] = (0.85, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio should be in [0, 1) (got {self.ratio}).")
        if not 0 <= self.spread <= min(self.ratio, 1 - self.ratio):
            raise ValueError(
                f"ratio - spread and ratio + spread are shares in [0, 1] (got {self.ratio} and "
                f"{self.spread}). Use a smaller spread."
            )
        if not 0 <= self.masked <= 1:
            raise ValueError(f"masked is a probability in [0, 1] (got {self.masked}).")
        for name, top in (("aspect", float("inf")), ("area", 1), ("context", 1)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= top:
                raise ValueError(f"{name} should be 0 < low <= high <= {top} (got {low}, {high}).")
        if self.targets < 1:
            raise ValueError(f"there should be at least one target (got {self.targets}).")

    @property
    def hidden(self) -> int:
        """Number of hidden patches per image, in the middle of the spread."""
        return round(self.ratio * self.grid[0] * self.grid[1])


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Which tiles to cut a view into: one from each cell of a grid, at a random place of its own.

    In the data the tiles stand one below the other, in the order that `How` remembers. What would
    give their places away without a look at the picture is taken away: edges that go on (at least
    one pixel is lost between any two tiles), lines that go on (each place is drawn on its own),
    and the colour fringes of lenses (`drop`). The numbers are those of Doersch et al. 2015.

    Args:
        grid: rows and columns of cells.
        gap: smallest distance of neighbouring tiles [fraction of the cell's side].
        jitter: range in which the place of a tile is drawn [fraction of the cell's side]; what gap
            and jitter leave of the cell is the tile's side.
        orders: orders the tiles may stand in, each equally likely: the cell, row-major, whose tile
            stands first, second and so on. Empty for all orders of all cells.
        drop: probability that a tile keeps one colour channel, any of them, and has noise of a
            hundredth of that one's standard deviation in the two others.
    """

    grid: tuple[int, int] = (3, 3)
    gap: float = 34 / 144
    jitter: float = 14 / 144
    orders: tuple[tuple[int, ...], ...] = ()
    drop: float = 0.0

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise ValueError(f"grid should have at least one row and column (got {self.grid}).")
        if not (self.gap >= 0 and self.jitter >= 0 and self.gap + self.jitter < 1):
            raise ValueError(
                f"gap and jitter should be shares of a cell that leave room for a tile (got "
                f"{self.gap} and {self.jitter})."
            )
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is a probability and should be in [0, 1] (got {self.drop}).")
        cells = range(self.grid[0] * self.grid[1])
        for order in self.orders:
            known = all(cell in cells for cell in order)
            if not order or len(order) != self.count or not known:
                raise ValueError(
                    f"orders should be equally long and name cells 0 to {cells[-1]} (got {order})."
                )

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.orders[0]) if self.orders else self.grid[0] * self.grid[1]

    def pixels(self, side: int) -> tuple[int, int, int]:
        """Side of a cell, side of a tile and range of its place for a view of `side` [pixels].

        Raises:
            ValueError: cells of less than two pixels, which leave nothing between tiles.
        """
        cell = side // max(self.grid)
        if cell < 2:
            raise ValueError(
                f"a view of {side} pixels has no room for {self.grid[0]} x {self.grid[1]} tiles. "
                "Use larger images or a smaller grid."
            )
        tile = min(max(round((1 - self.gap - self.jitter) * cell), 1), cell - 1)
        return cell, tile, min(round(self.jitter * cell), cell - 1 - tile)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How one view is made, in this order: background, crop and resize, flip, quarter turns, colour
    jitter, grey, blur, solarise, cut-out, noise, zeroed pixels, tiles, normalise, mask.

    Args:
        size: side of the view, as a fraction of the encoder's image size.
        crop: range of the crop's area, as a fraction of the image's; None takes the largest
            centred square of the image.
        ratio: range of the crop's width / height, drawn log-uniformly.
        background: probability of removing the background: what is dark in the mask that came with
            the image becomes the mean colour. Images without masks keep theirs.
        flip: probability of mirroring left to right.
        turns: quarter turns counter-clockwise; None draws 0, 1, 2 or 3.
        jitter: probability of the colour jitter, whose four steps come in random order, each
            clipped to [0, 1].
        brightness: largest change; the factor is uniform in [max(0, 1 - b), 1 + b].
        contrast: as brightness.
        saturation: as brightness.
        hue: largest shift [turns of the colour circle], at most 0.5.
        grey: probability of turning grey.
        blur: probability of a Gaussian blur, kernel side // 10 made odd (at least 3).
        sigma: range of its standard deviation [pixels of the view].
        solarise: probability of inverting values >= 0.5.
        cutout: probability of setting a rectangle of the view to the mean colour.
        cutout_area: range of its area [fraction of the view's].
        cutout_ratio: range of its width / height, drawn log-uniformly. Where ten rectangles drawn
            so do not fit into the view, nothing is cut out.
        noise: standard deviation of Gaussian noise [fraction of the full range], not clipped.
        zeroed: probability with which each pixel is set to the mean colour (masking noise).
        mask: which patches to hide; the data stay whole.
        tiles: which tiles to cut the view into; the data are these.
        same_as: the main view whose crop, background, flip and colours this one repeats (turns,
            cut-out, noise, zeroed, mask and tiles stay its own).
    """

    size: float = 1.0
    crop: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    background: float = 0.0
    flip: float = 0.5
    turns: int | None = 0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    cutout: float = 0.0
    cutout_area: tuple[float, float] = (0.02, 0.33)
    cutout_ratio: tuple[float, float] = (0.3, 3.3)
    noise: float = 0.0
    zeroed: float = 0.0
    mask: Masking | None = None
    tiles: Tiles | None = None
    same_as: int | None = None

    def __post_init__(self) -> None:
        probabilities = ("flip", "jitter", "grey", "blur", "solarise", "cutout", "zeroed")
        for name in ("background", *probabilities):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability and should be in [0, 1] (got {value}).")
        for name, area in (("crop", self.crop), ("cutout_area", self.cutout_area)):
            if area is not None and not 0 < area[0] <= area[1] <= 1:
                raise ValueError(f"{name} should be 0 < low <= high <= 1 (got {area}).")
        for name, ratio in (("ratio", self.ratio), ("cutout_ratio", self.cutout_ratio)):
            if not 0 < ratio[0] <= ratio[1]:
                raise ValueError(f"{name} should be 0 < low <= high (got {ratio}).")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue should be in [0, 0.5] (got {self.hue}).")
        if self.mask is not None and self.tiles is not None:
            raise ValueError("a view has a mask or tiles, not both. Leave one out.")

    @property
    def noisy(self) -> bool:
        """Whether values are drawn that leave [0, 1] or are finer than a byte tells."""
        return self.noise > 0 or (self.tiles is not None and self.tiles.drop > 0)

    def pixels(self, image_size: int) -> int:
        """Side of the view [pixels] for an encoder of `image_size`, a multiple of 4 if local."""
        if self.size == 1.0:
            return image_size
        return max(4, 4 * round(self.size * image_size / 4))


@dataclass(frozen=True)
class Plan:
    """Which views to make of every image.

    Args:
        main: full views.
        local: small views of a multi-crop plan, sorted by size.
        pairs: what the x and y of F(x, y) are: `views` (two main views), `itself` (visible and
            hidden patches of a view), `turn` (a view and its quarter turn), `order` (tiles and
            their order), `tasks` (all main views, each asked about by another task, and what the
            answers are read from: the same views), `alone` (no x).
        kind: image; array (vectors, as they are); tokens.
    """

    main: tuple[Augmentation, ...]
    local: tuple[Augmentation, ...] = ()
    pairs: Pairs = "views"
    kind: Kind = "image"

    def __post_init__(self) -> None:
        if not self.main:
            raise ValueError("a plan needs at least one main view (got none).")
        sizes = [view.size for view in self.local]
        if sizes != sorted(sizes):
            raise ValueError(f"local views should be sorted by size (got {sizes}).")
        places = [*range(len(self.main)), *[len(self.main)] * len(self.local)]
        for i, view in zip(places, (*self.main, *self.local), strict=True):
            if view.same_as is not None and not 0 <= view.same_as < i:
                raise ValueError(f"same_as should name an earlier view (got {view.same_as}).")


LARGE = 128
"""From this side on [pixels] methods take the recipes of ImageNet, below it those of CIFAR-10: in
minutes at 96 pixels SwAV learned nothing from the strong ones (benchmarks/eight_methods)."""

WHOLE = Augmentation(crop=None, flip=0.0)
"""The image as evaluation sees it: its largest centred square, nothing random."""

LIGHT = Augmentation(crop=(0.3, 1.0), flip=0.5)
"""Crop and flip only."""

SIMCLR = Augmentation(
    jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, blur=0.5
)
"""SimCLR, strength 1 (Chen et al. 2020, appendix A)."""

SIMCLR_SMALL = replace(
    SIMCLR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0, crop=(0.2, 1.0)
)
"""SimCLR for small images: strength 0.5, no blur (Chen et al. 2020, appendix B.9); crops from a
fifth of the area, a choice of ours for short runs."""

MOCO2 = replace(SIMCLR_SMALL, blur=0.5)
"""MoCo v2 (Chen et al. 2020): crops from a fifth of the area, weaker jitter, blur half the time."""

BYOL_FIRST = Augmentation(
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grey=0.2, blur=1.0
)
"""BYOL's first view: always blurred (Grill et al. 2020, appendix B)."""

BYOL_SECOND = replace(BYOL_FIRST, blur=0.1, solarise=0.2)
"""BYOL's second view: rarely blurred, sometimes solarised."""

SWAV_GLOBAL = replace(SIMCLR, crop=(0.14, 1.0))
"""SwAV's large crop (Caron et al. 2020): 224 pixels of 224."""

SWAV_LOCAL = replace(SIMCLR, crop=(0.05, 0.14), size=96 / 224)
"""SwAV's small crop: 96 pixels of 224."""

DINO_FIRST = replace(BYOL_FIRST, crop=(0.4, 1.0))
DINO_SECOND = replace(BYOL_SECOND, crop=(0.4, 1.0))
DINO_LOCAL = replace(BYOL_FIRST, crop=(0.05, 0.4), size=96 / 224, blur=0.5)
"""DINO's small crop (Caron et al. 2021)."""


def two_views(first: Augmentation, second: Augmentation | None = None) -> Plan:
    """Two views of every image; the second is made like the first if not given."""
    return Plan(main=(first, second if second is not None else first))


def whole() -> Plan:
    """One view of every image as evaluation sees it."""
    return Plan(main=(WHOLE,), pairs="alone")
