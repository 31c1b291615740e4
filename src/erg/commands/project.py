"""erg project: maps of embeddings side by side."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import numpy as np

PANEL, MARGIN, DOT = 420, 28, 3  # side of a map, room for its title, radius of a point [pixels]
COLOURS: tuple[str, ...] = (
    "#2f6fb5", "#dd7a26", "#3b9455", "#c9453e", "#8360b5", "#8c6047", "#cf62a2", "#5e8c1f",
    "#b49a1a", "#2299a8", "#5b59c9",
)  # fmt: skip
"""Of the most common classes, as on the report's page; all others share a grey."""
OTHERS, UNLABELLED = "#8b929b", "#cfd3d8"


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(project_, args=list(arguments), prog="erg project")


def project_(
    embeddings: Path,
    /,
    *,
    items: int = 1500,
    neighbours: int = 12,
    steps: int = 2000,
    seed: int = 0,
    out: Path = Path("maps.png"),
) -> int:
    """Draw embeddings in two dimensions by PCA, t-SNE, MDS and an autoencoder, and compare.

    Trustworthiness: who is near on the map is near. Continuity: who is near is near on the map.
    Distances: rank correlation of all of them. PCA and the autoencoder can place new items too.

    Args:
        embeddings: a file of `erg embed`.
        items: most items to draw (3,000 at most), spread evenly over the file.
        neighbours: looked at by trustworthiness and continuity.
        steps: of the autoencoder's training.
        seed: of everything random.
        out: the picture to write (PNG), and beside it the numbers (JSON).
    """
    from dataclasses import asdict

    import numpy as np
    from rich.table import Table

    from erg.commands.options import beside, check_seed
    from erg.commands.show import console, tell
    from erg.durable import write_atomically
    from erg.embeddings import Embeddings, unit
    from erg.evaluate.trustworthiness import faithful
    from erg.explore.project import LARGEST_TSNE, projections

    check_seed(seed)
    numbers = beside(out, ".json", "the numbers are")
    found = Embeddings.load(embeddings)
    most = min(items, LARGEST_TSNE, len(found))
    found = found[np.linspace(0, len(found) - 1, most).astype(int)]
    vectors = unit(found.vectors)  # distances as angles, as neighbours are found elsewhere
    start = time.monotonic()
    maps = {made.name: made.xy for made in projections(vectors, seed=seed)}
    tell(f"PCA, t-SNE and MDS of {most} items in {time.monotonic() - start:.1f} s.")
    start = time.monotonic()
    maps["autoencoder"] = by_autoencoder(vectors, steps=steps, seed=seed)
    tell(f"An autoencoder with two units in {time.monotonic() - start:.1f} s.")
    k = min(neighbours, (most - 1) // 2)
    told: dict[str, dict[str, float]] = {}
    for name, xy in maps.items():
        told[name] = asdict(faithful(vectors, xy, k=k))
        if found.labels is not None and len({*found.labels} - {""}) > 1:
            told[name]["nearest_label"] = _same_label(xy, np.asarray(found.labels))
    titles = {
        "trustworthiness": "trustworthiness", "continuity": "continuity", "shepard": "distances",
        "nearest_label": "nearest has the same label",
    }  # fmt: skip
    kinds = [kind for kind in titles if kind in next(iter(told.values()))]
    table = Table("", *(titles[kind] for kind in kinds), title=f"{most} items, k = {k}")
    for name, scores in told.items():
        table.add_row(name, *(f"{scores[kind]:.3f}" for kind in kinds))
    console.print(table)
    write_atomically(out, drawn(maps, found.labels))
    about = {"format": 1, "items": most, "maps": told}
    write_atomically(numbers, json.dumps(about, indent=1).encode())
    tell(f"The maps are in {out}.")
    return 0


def by_autoencoder(vectors: "np.ndarray", *, steps: int, seed: int) -> "np.ndarray":
    """The two units of an autoencoder of vectors [n 2], trained on their principal components."""
    import numpy as np

    from erg.evaluate.baselines import PCA
    from erg.train.features import features
    from erg.train.fit import fit
    from erg.train.run import Optimiser, Run
    from erg.views.types import View, Views

    reduced = PCA.fit(vectors, 50)(vectors)
    reduced = (reduced / reduced[:, 0].std()).astype(np.float32)
    run = Run(
        method="Autoencoder", method_args={"dim": 2}, encoder="mlp",
        encoder_args={"width": 128, "depth": 2, "dim": 64}, image_size=reduced.shape[1],
        batch=min(256, len(reduced)), steps=steps, seed=seed, precision="32",
        optimiser=Optimiser(lr=3e-3, weight_decay=1e-4), hold_out=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(run, reduced, Path(folder) / "run", observers=(), device="cpu")
    import torch

    views = Views((View(torch.from_numpy(reduced)),), torch.arange(len(reduced)), pairing="alone")
    return features(fitted.method.encode, fitted.method, iter([views]), device=torch.device("cpu"))


def _same_label(xy: "np.ndarray", labels: "np.ndarray") -> float:
    """Share of labelled items whose nearest labelled item on the map has their label."""
    import numpy as np
    from scipy.spatial import KDTree

    known = labels != ""
    xy, labels = xy[known], labels[known]
    two = np.asarray(KDTree(xy).query(xy, k=2)[1])
    # Where another lies in the same place, an item may come after it, or not at all.
    own = two[:, 0] == np.arange(len(xy))
    nearest = np.where(own, two[:, 1], two[:, 0])
    return float((labels[nearest] == labels).mean())


def coloured(labels: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The colour of every item, and what the colours stand for: names with theirs.

    The most common classes have a colour each; no two classes look like one, but for those that are
    called others.
    """
    sizes = Counter(label for label in labels if label)
    common = sorted(sizes, key=lambda name: (-sizes[name], name))
    own: dict[str, str] = dict(zip(common, COLOURS, strict=False))
    legend = list(own.items())
    if len(common) > len(own):
        legend.append((f"{len(common) - len(own)} other classes", OTHERS))
    if "" in labels:
        legend.append(("no label", UNLABELLED))
    return [own.get(label, OTHERS if label else UNLABELLED) for label in labels], legend


def drawn(maps: "dict[str, np.ndarray]", labels: "np.ndarray | None") -> bytes:
    """All maps in one picture (PNG), points in the colours of their labels, with a legend."""
    from io import BytesIO

    import numpy as np
    from PIL import Image, ImageDraw

    colours, legend = coloured([] if labels is None else [str(label) for label in labels])
    room = 20 * -(-len(legend) // 5)
    size = (2 * PANEL, -(-len(maps) // 2) * (PANEL + MARGIN) + room)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for i, (name, xy) in enumerate(maps.items()):
        left, top = i % 2 * PANEL, i // 2 * (PANEL + MARGIN)
        pen.text((left + 10, top + 6), name, fill="black", font_size=16)
        # One scale for both axes: distances on a map should be distances.
        centre = (xy.max(axis=0) + xy.min(axis=0)) / 2
        reach = max(float(np.abs(xy - centre).max()), 1e-12)
        places = (xy - centre) / reach * (PANEL / 2 - 12) + PANEL / 2
        for j, (across, up) in enumerate(places):
            x, y = left + float(across), top + MARGIN + PANEL - float(up)
            colour = colours[j] if colours else COLOURS[0]
            pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
    for i, (name, colour) in enumerate(legend):
        x, y = 10 + i % 5 * (2 * PANEL // 5), size[1] - room + i // 5 * 20
        pen.ellipse((x, y + 4, x + 8, y + 12), fill=colour)
        pen.text((x + 14, y), name[:18], fill="black", font_size=13)
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
