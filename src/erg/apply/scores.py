"""Honest scores: the encoder beside what it was before training, PCA and raw pixels.

With labels: weighted k-nearest neighbours and a linear probe, on a test set that nothing was
chosen on. Without: instance retrieval, which measures invariance, not usefulness. Every score has
a bootstrap interval, and the verdict rests on paired differences over the same test items.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from erg.apply.embed import Opened, open_for, vectors_of
from erg.catalog import find
from erg.data.loader import Loader
from erg.data.manifest import split
from erg.encoders import Encoder, load_encoder
from erg.evaluate.baselines import PCA
from erg.evaluate.clusters import cluster_scores
from erg.evaluate.intervals import bootstrap, difference
from erg.evaluate.knn import knn_accuracy
from erg.evaluate.linear import linear_accuracy
from erg.evaluate.rank import alignment, rankme, uniformity
from erg.evaluate.retrieval import recall_at_1
from erg.train.features import features, whole_images
from erg.train.fit import Fitted
from erg.views.plan import LIGHT, Plan
from erg.views.types import Views

ENCODER, START, PCA_NAME, PIXELS = "encoder", "before training", "PCA", "raw pixels"
RETRIEVED = 1000
TITLES = {
    "knn20": "20-NN accuracy",
    "knn200": "200-NN accuracy",
    "linear": "linear probe accuracy",
    "recall": "recall@1 between two crops",
    "recall_colour": "recall@1 between crops of changed colour",
}

Features = dict[str, np.ndarray]
Right = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Ways:
    """The ways to turn images into vectors that are compared.

    Args:
        fitted: the trained run.
        start: its encoder before training.
    """

    fitted: Fitted
    start: Encoder

    def vectors(self, opened: Opened, rows: np.ndarray, tell: Callable[[str], None]) -> Features:
        """Vectors of the same rows by encoder, encoder before training and raw pixels."""
        method = self.fitted.method
        autocast = self.fitted.run.autocast(torch.device("cpu"))
        found: Features = {}
        tell(f"Embedding {len(rows)} images with the encoder, and with the one before training.")
        found[ENCODER] = vectors_of(
            method.encode, method, method.encoder, opened, rows, autocast=autocast
        )
        found[START] = vectors_of(
            self.start, self.start, self.start, opened, rows, autocast=autocast
        )
        found[PIXELS] = pixels_of(opened, rows, method.encoder.image_size)
        return found


def score(
    fitted: Fitted,
    data: Any,
    *,
    label: str | None = None,
    test: Any = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Scores of a trained run in the form of scores.json (format 1).

    Args:
        fitted: the run.
        data: anything `open_source` opens, or already opened: to learn probes on, and to test on
            too if `test` is not given (80 / 20 by content hash, duplicates kept together).
        label: where labels are found; without, only retrieval is measured.
        test: data to test on.
        tell: called with lines worth printing.

    Raises:
        ValueError: the data cannot be used, or a label is missing everywhere.
    """
    encoder = fitted.encoder
    ways = Ways(fitted, load_encoder(fitted.folder / "encoder_start"))
    opened = data if isinstance(data, Opened) else open_for(encoder, data, label=label)
    other = opened if test is None else open_for(encoder, test, label=label)
    if label is None:
        rows = other.rows[:RETRIEVED]
        right, close = _retrieval(ways, other, rows)
        about: dict[str, Any] = {
            "split": f"{len(rows)} images, each found again among the others from another crop",
            "n_train": 0,
            "n_test": len(rows),
            "classes": None,
            **close,
        }
    else:
        right, about = _labelled(ways, opened, other, test is None, tell)
    return {
        "format": 1,
        "data": str(data)[:200] if isinstance(data, str) else type(data).__name__,
        "test": test if isinstance(test, str) else None,
        "label": label,
        **about,
        "rows": [
            {"name": name, "scores": {kind: asdict(bootstrap(r)) for kind, r in kinds.items()}}
            for name, kinds in right.items()
        ],
        "verdict": verdict(right, primary(fitted, label)),
    }


def primary(fitted: Fitted, label: str | None) -> str:
    """The score the verdict rests on.

    Neighbours where the method shapes distances; the linear probe for latent-variable methods,
    whose features are not meant to be compared by distance (He et al. 2022).
    """
    if label is None:
        return "recall_colour"
    joint = find(fitted.run.method).cell.architecture == "joint-embedding"
    return "knn20" if joint else "linear"


def _labelled(
    ways: Ways, opened: Opened, other: Opened, one_set: bool, tell: Callable[[str], None]
) -> tuple[Right, dict[str, Any]]:
    train, test = opened.rows, other.rows
    if one_set:
        train, test = split(opened.manifest, share=0.2)
    train, train_labels = _known(opened, train, None)
    test, test_labels = _known(other, test, opened.classes)
    fit_on = ways.vectors(opened, train, tell)
    ask = ways.vectors(other, test, tell)
    pca = PCA.fit(fit_on[PIXELS], min(ways.fitted.encoder.dim, *fit_on[PIXELS].shape))
    fit_on[PCA_NAME], ask[PCA_NAME] = pca(fit_on[PIXELS]), pca(ask[PIXELS])
    right: Right = {}
    for name in (ENCODER, START, PCA_NAME, PIXELS):
        tell(f"Scoring {name}: neighbours and linear probe.")
        a, b = fit_on[name], ask[name]
        right[name] = {
            f"knn{k}": knn_accuracy(
                a, train_labels, b, test_labels, k=min(k, len(a)), temperature=t
            )
            for k, t in ((20, 0.07), (200, 0.1))
        }
        if name != PIXELS:  # thousands of values: slow, and their PCA stands beside it
            right[name]["linear"] = linear_accuracy(a, train_labels, b, test_labels)
    classes = len(np.unique(train_labels))
    about = {
        "split": "80 / 20 by content hash" if one_set else "two sets, as given",
        "n_train": len(train),
        "n_test": len(test),
        "classes": classes,
        "clusters": _clusters(ask[ENCODER], test_labels, classes),
        "rankme": rankme(ask[ENCODER]),
        **_closeness(ways, other, test[:RETRIEVED]),
    }
    return right, about


def _known(
    opened: Opened, rows: np.ndarray, classes: tuple[str, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that have a label, with class numbers as in `classes` (by name)."""
    assert opened.labels is not None
    codes = opened.labels
    if classes is not None and classes != opened.classes:
        number = {name: i for i, name in enumerate(classes)}
        new = [number.setdefault(name, len(number)) for name in opened.classes]
        codes = np.where(codes >= 0, np.array([*new, -1])[codes], -1)
    rows = rows[codes[rows] >= 0]
    if len(rows) < 2:
        raise ValueError(
            f"only {len(rows)} images have a label. Name the column (or 'folder') with --label."
        )
    return rows, codes[rows]


def _clusters(vectors: np.ndarray, labels: np.ndarray, k: int) -> dict[str, float] | None:
    if not 2 <= k < len(vectors):
        return None
    found = cluster_scores(vectors, labels, k=k)
    return {"nmi": found.nmi, "ari": found.ari, "ami": found.ami, "acc": found.acc, "k": k}


def _retrieval(ways: Ways, opened: Opened, rows: np.ndarray) -> tuple[Right, dict[str, Any]]:
    groups = np.array([opened.manifest.hashes[i] for i in rows])
    right: Right = {name: {} for name in (ENCODER, START, PCA_NAME, PIXELS)}
    close: dict[str, float] = {}
    for kind, plan in (("recall", TWO_CROPS), ("recall_colour", TWO_COLOURS)):
        first, second = crops_of(ways, opened, rows, plan)
        pca = PCA.fit(first[PIXELS], min(ways.fitted.encoder.dim, *first[PIXELS].shape))
        first[PCA_NAME], second[PCA_NAME] = pca(first[PIXELS]), pca(second[PIXELS])
        for name, found in right.items():
            found[kind] = recall_at_1(first[name], second[name], groups=groups)
        if kind == "recall":
            close = {
                "rankme": rankme(first[ENCODER]),
                "alignment": alignment(first[ENCODER], second[ENCODER]),
                "uniformity": uniformity(first[ENCODER]),
            }
    return right, close


def _closeness(ways: Ways, opened: Opened, rows: np.ndarray) -> dict[str, float]:
    first, second = crops_of(ways, opened, rows, TWO_CROPS)
    return {
        "alignment": alignment(first[ENCODER], second[ENCODER]),
        "uniformity": uniformity(first[ENCODER]),
    }


CROP = replace(LIGHT, crop=(0.5, 0.9))
COLOUR = replace(CROP, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
TWO_CROPS = Plan(main=(CROP, CROP))
TWO_COLOURS = Plan(main=(COLOUR, COLOUR))


def crops_of(ways: Ways, opened: Opened, rows: np.ndarray, plan: Plan) -> tuple[Features, Features]:
    """Vectors of two versions of the same images, by encoder, start and raw pixels."""
    method, start = ways.fitted.method, ways.start
    loader = Loader(
        opened.images, rows, plan, batch=256, seed=0, image_size=method.encoder.image_size,
        mean=method.encoder.mean, std=method.encoder.std, threads=2,
    )  # fmt: skip
    batches = [loader.make(rows[i : i + 256], epoch=0) for i in range(0, len(rows), 256)]
    loader.close()
    found: tuple[Features, Features] = ({}, {})
    cpu = torch.device("cpu")
    for side in (0, 1):
        sided = [replace(views, main=(views.main[side],)) for views in batches]
        found[side][ENCODER] = features(method.encode, method, iter(sided), device=cpu)
        found[side][START] = features(start, start, iter(sided), device=cpu)
        found[side][PIXELS] = np.concatenate([_small_pixels(views) for views in sided])
    return found


def pixels_of(opened: Opened, rows: np.ndarray, image_size: int) -> np.ndarray:
    """Raw pixels in [0, 1] at 32 pixels or less; 16 where they would not fit in a gigabyte."""
    side = min(32, image_size)
    side = side if len(rows) * side**2 * 12 < 1 << 30 else 16
    views = whole_images(
        opened.images, rows, image_size=side, mean=(0.0,) * 3, std=(1.0,) * 3, threads=2
    )
    return np.concatenate([batch.main[0].data.flatten(1).numpy() for batch in views])


def _small_pixels(views: Views) -> np.ndarray:
    data = views.main[0].unit()
    if data.ndim == 4:
        data = torch.nn.functional.adaptive_avg_pool2d(data, min(32, data.shape[-1]))
    return data.flatten(1).float().numpy()


def verdict(right: Right, kind: str) -> dict[str, Any]:
    """Better than every baseline beyond the luck of these test items, or not; in plain words."""
    kind = kind if kind in right[ENCODER] else "linear"
    mine = right[ENCODER][kind]
    won: list[str] = []
    lost: list[str] = []
    for name in (START, PCA_NAME, PIXELS):
        if kind not in right[name]:
            continue
        gap = difference(mine, right[name][kind])
        value, low, high = (100 * part for part in (gap.value, gap.low, gap.high))
        text = f"{name} ({value:+.1f} points, {low:+.1f} to {high:+.1f})"
        (won if gap.low > 0 else lost).append(text)
    title = f"{TITLES[kind]} {100 * float(np.mean(mine)):.1f} %"
    if kind.startswith("recall"):
        title += " (this measures invariance, not usefulness)"
    if not lost:
        text = f"Worth it: {title}, better than {_listed(won)}."
    elif not won:
        text = f"Not worth it: {title}, not clearly better than {_listed(lost)}."
    else:
        text = (
            f"Not clearly worth it: {title}, better than {_listed(won)}, but not clearly better "
            f"than {_listed(lost)}."
        )
    return {"better": not lost, "score": kind, "text": text}


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
