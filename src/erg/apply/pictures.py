"""What the page shows: thumbnails, a map, neighbours, the views the method saw, energies."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from erg.apply.embed import Opened, evenly, trained_on, vectors_of
from erg.data.loader import Loader
from erg.durable import write_atomically
from erg.explore.neighbours import panels
from erg.explore.project import project
from erg.train.features import at_once
from erg.train.fitted import Fitted
from erg.train.health import HELD_EPOCH, record_energies
from erg.views.pixels import Pixels
from erg.views.types import View, Views

THUMB, SHEET_COLUMNS = 48, 40
VIEW = 96


def draw_pictures(
    fitted: Fitted,
    opened: Opened,
    *,
    held: np.ndarray | None = None,
    items: int = 1500,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write pictures/ into the run folder.

    Args:
        fitted: the trained run.
        opened: images to show.
        held: rows whose energies are measured; if not given, those held out of training, which are
            those measured before it, and all where there are hardly any.
        items: images on the map, spread evenly over the rows.
        tell: called with lines worth printing.
    """
    folder = fitted.folder / "pictures"
    folder.mkdir(exist_ok=True)
    rows = evenly(opened.rows, items)
    if held is None:
        held = opened.rows[~trained_on(fitted, opened)[opened.rows]]
    held = opened.rows if len(held) < 4 else held
    with closing(_loader(fitted, opened, held)) as loader:
        few = at_once(512, loader.image_size, loader.mean)
        views = loader.make(held[:few], epoch=HELD_EPOCH)
        record_energies(folder / "energies.json", fitted.method, views, "after")
        if isinstance(opened.images, np.ndarray):
            return folder
        tell(f"Drawing a map of {len(rows)} images.")
        vectors = vectors_of(fitted.method.encode, fitted.method, fitted.encoder, opened, rows)
        _map(folder, opened, rows, vectors)
        _views(folder, fitted, opened, loader.make(rows[:8], epoch=0), rows[:8])
    return folder


def _loader(fitted: Fitted, opened: Opened, rows: np.ndarray) -> Loader:
    encoder = fitted.encoder
    return Loader(
        opened.images, rows, fitted.run.plan or fitted.method.plan(), batch=len(rows),
        seed=fitted.run.seed, image_size=encoder.image_size, mean=encoder.mean, std=encoder.std,
    )  # fmt: skip


def _map(folder: Path, opened: Opened, rows: np.ndarray, vectors: np.ndarray) -> None:
    xy, name = project(vectors)
    labels = None
    if opened.labels is not None:
        names = [*opened.classes, ""]
        labels = [names[opened.labels[row]] for row in rows]
    pixels = opened.images.pixels(rows)  # type: ignore[union-attr]
    thumbs = [square(pixels, i, THUMB) for i in range(len(rows))]
    write_atomically(folder / "thumbnails.webp", sheet(thumbs, SHEET_COLUMNS))
    points = {
        "format": 1,
        "size": THUMB,
        "columns": SHEET_COLUMNS,
        "projection": name,
        "x": [round(float(x), 4) for x in xy[:, 0]],
        "y": [round(float(y), 4) for y in xy[:, 1]],
        "path": [opened.manifest.paths[row] for row in rows],
        "label": labels,
    }
    write_atomically(folder / "map.json", json.dumps(points).encode())
    if len(vectors) > 8:
        found = panels(vectors)
        queries = [
            {
                "item": int(query),
                "neighbours": [
                    {"item": int(item), "similarity": round(float(similarity), 4)}
                    for item, similarity in zip(near, how_near, strict=True)
                ],
            }
            for query, near, how_near in zip(*found, strict=True)
        ]
        text = json.dumps({"format": 1, "queries": queries})
        write_atomically(folder / "neighbours.json", text.encode())


def _as_cut(view: View, i: int) -> torch.Tensor:
    """Image i of a view; if it is cut into tiles, they are laid out in the order they stand in."""
    image = view.unit()[i].float()
    if view.made is None or view.made.order is None:
        return image
    side = image.shape[2]
    tiles = image.unflatten(1, (-1, side))  # [c p t t]
    rows = math.isqrt(tiles.shape[1] - 1) + 1
    empty = rows * rows - tiles.shape[1]
    tiles = torch.nn.functional.pad(tiles, (0, 0, 0, 0, 0, empty))
    return tiles.unflatten(1, (rows, rows)).permute(0, 1, 3, 2, 4).reshape(3, rows * side, -1)


def _views(folder: Path, fitted: Fitted, opened: Opened, views: Views, rows: np.ndarray) -> None:
    pixels = opened.images.pixels(rows)  # type: ignore[union-attr]
    made = [*views.main, *views.local]
    captions = [
        "image",
        *(f"view {i + 1}" for i in range(len(views.main))),
        *(f"small {i + 1}" for i in range(len(views.local))),
    ]
    cells: list[np.ndarray] = []
    for i in range(len(rows)):
        cells.append(square(pixels, i, VIEW))
        for view in made:
            image = _as_cut(view, i)
            if view.mask is not None:
                image = image * _visible(view.mask.hidden[i], view.mask.grid, image.shape[-1])
            array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            cells.append(_resized(Image.fromarray(np.ascontiguousarray(array)), VIEW))
    write_atomically(folder / "views.webp", sheet(cells, len(captions)))
    about = {
        "format": 1,
        "size": VIEW,
        "columns": len(captions),
        "rows": [{"path": opened.manifest.paths[row], "captions": captions} for row in rows],
    }
    write_atomically(folder / "views.json", json.dumps(about).encode())


def _visible(hidden: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """1 where a pixel is visible, 0 where its patch is hidden [h w]."""
    kept = (~hidden.any(dim=0)).float().reshape(1, 1, *grid)
    return torch.nn.functional.interpolate(kept, size=(side, side))[0, 0]


def square(pixels: Pixels, i: int, side: int) -> np.ndarray:
    """The centred square of image i, as evaluation sees it, at a given side."""
    image = pixels.image(i)
    h, w = image.shape[:2]
    edge = min(h, w)
    top, left = (h - edge) // 2, (w - edge) // 2
    return _resized(Image.fromarray(image[top : top + edge, left : left + edge]), side)


def _resized(image: Image.Image, side: int) -> np.ndarray:
    smooth = image.width > side / 2
    filter = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(image.resize((side, side), filter))


def sheet(cells: Sequence[np.ndarray], columns: int, captions: Sequence[str] = ()) -> bytes:
    """Pictures of one size on one, row by row.

    Args:
        cells: uint8 [h w 3].
        columns: in a row.
        captions: over the columns; with them it is a PNG on white, with gaps, to be looked at;
            without them a WebP on black, without gaps, that a page cuts its pictures from.
    """
    height, width = cells[0].shape[:2]
    gap, head = (4, 20) if captions else (0, 0)
    rows = -(-len(cells) // columns)
    size = (gap + columns * (width + gap), head + rows * (height + gap))
    page = Image.new("RGB", size, "white" if captions else "black")
    for i, cell in enumerate(cells):
        y, x = divmod(i, columns)
        page.paste(Image.fromarray(cell), (gap + x * (width + gap), head + y * (height + gap)))
    for x, caption in enumerate(captions):
        place, font = (gap + x * (width + gap), 2), ImageFont.load_default(11)
        ImageDraw.Draw(page).text(place, caption, fill="black", font=font)
    out = BytesIO()
    page.save(out, "PNG" if captions else "WEBP", quality=80)
    return out.getvalue()
