"""Honest scores: the encoder beside what it was before training, PCA and raw pixels.

With labels: weighted k-nearest neighbours and a linear probe, on a test set that nothing was
chosen on. Without: instance retrieval on images held out of training, which measures invariance,
not usefulness. Every score has a bootstrap interval, exact duplicates resampled together, and the
verdict rests on paired differences over the same test items.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from erg.apply.embed import (
    Opened,
    device_of,
    evenly,
    known_already,
    open_for,
    trained_on,
    vectors_of,
)
from erg.catalog import find
from erg.data.loader import Loader
from erg.data.splits import split
from erg.encoders import Encoder, load_encoder
from erg.evaluate.baselines import PCA
from erg.evaluate.clusters import cluster_scores
from erg.evaluate.intervals import bootstrap, clear, difference
from erg.evaluate.knn import knn_accuracy
from erg.evaluate.linear import linear_accuracy
from erg.evaluate.rank import alignment, rankme, uniformity
from erg.evaluate.retrieval import recall_at_1
from erg.train.features import features, whole_images
from erg.train.fit import Fitted
from erg.views.plan import LIGHT, Plan
from erg.views.types import View

ENCODER, START, PCA_NAME, PIXELS = "encoder", "before training", "PCA", "raw pixels"
RETRIEVED = 1000
LARGEST = 1 << 30
"""Bytes of raw pixels beyond which they are averaged down further."""
VOTERS = {"knn20": (20, 0.07), "knn200": (200, 0.1)}
"""Neighbours that vote, and the temperature of their votes."""

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
        start: its encoder before training, on the same device.
    """

    fitted: Fitted
    start: Encoder

    @classmethod
    def of(cls, fitted: Fitted) -> "Ways":
        """Those of a run, whose folder holds its encoder before training."""
        start = load_encoder(fitted.folder / "encoder_start")
        return cls(fitted, start.to(device_of(fitted.method)))

    def vectors(
        self, opened: Opened, rows: np.ndarray, tell: Callable[[str], None], *, most: int
    ) -> Features:
        """Vectors of the same rows by encoder, encoder before training and raw pixels.

        Args:
            opened: images, or vectors.
            rows: of them.
            tell: called with lines worth printing.
            most: rows of the largest set that is compared (see `pixels_of`).
        """
        method = self.fitted.method
        autocast = self.fitted.run.autocast(device_of(method))
        found: Features = {}
        tell(f"Embedding {len(rows)} images with the encoder, and with the one before training.")
        found[ENCODER] = vectors_of(
            method.encode, method, method.encoder, opened, rows, autocast=autocast
        )
        found[START] = vectors_of(
            self.start, self.start, self.start, opened, rows, autocast=autocast
        )
        found[PIXELS] = pixels_of(opened, rows, method.encoder.image_size, most=most)
        return found


@dataclass(frozen=True)
class Tested:
    """What was measured on the test items.

    Args:
        right: by name of the way and kind of score, whether each test item came out right.
        groups: content of each test item: duplicates are no evidence of their own.
        about: the rest of scores.json.
    """

    right: Right
    groups: np.ndarray
    about: dict[str, Any]


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
    ways = Ways.of(fitted)
    opened = open_for(encoder, data, label=label, tell=tell)
    other = opened if test is None else open_for(encoder, test, label=label, tell=tell)
    if label is None:
        found = _again(ways, other, tell)
    else:
        found = _labelled(ways, opened, other, test is None, tell)
    kind, groups = primary(fitted, label), found.groups
    voters = found.about.get("voters")
    return {
        "format": 1,
        "data": str(data)[:200] if isinstance(data, str) else type(data).__name__,
        "test": test if isinstance(test, str) else None,
        "label": label,
        **found.about,
        "rows": [
            {
                "name": name,
                "scores": {k: asdict(bootstrap(r, groups=groups)) for k, r in kinds.items()},
            }
            for name, kinds in found.right.items()
        ],
        "verdict": verdict(found.right, kind, groups=groups, voters=voters),
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


def title_of(kind: str, voters: dict[str, int] | None) -> str:
    """What a score is called; neighbours by the number that voted, in a small set fewer."""
    number = (voters or {}).get(kind)
    return TITLES[kind] if number is None else f"{number}-NN accuracy"


def _labelled(
    ways: Ways, opened: Opened, other: Opened, one_set: bool, tell: Callable[[str], None]
) -> Tested:
    train, test = opened.rows, other.rows
    how = "two sets, as given"
    if one_set:
        train, test = split(opened.manifest, share=0.2)
        how = "80 / 20 by content hash"
    train, train_labels = _known(opened, train, None)
    test, test_labels = _known(other, test, opened.classes)
    leaked = int(known_already(opened, train, other, test).sum())
    if leaked:
        how += f"; {leaked:,} of the test images are also among those learned on"
        tell(f"{leaked:,} of {len(test):,} test images are also among those that probes learn on.")
    seen = int(trained_on(ways.fitted, other)[test].sum())
    most = max(len(train), len(test))
    fit_on = ways.vectors(opened, train, tell, most=most)
    ask = ways.vectors(other, test, tell, most=most)
    pca = PCA.fit(fit_on[PIXELS], min(ways.fitted.encoder.dim, *fit_on[PIXELS].shape))
    fit_on[PCA_NAME], ask[PCA_NAME] = pca(fit_on[PIXELS]), pca(ask[PIXELS])
    copies = opened.manifest.hashes[train]
    right: Right = {}
    for name in (ENCODER, START, PCA_NAME, PIXELS):
        tell(f"Scoring {name}: neighbours and linear probe.")
        a, b = fit_on[name], ask[name]
        right[name] = {
            kind: knn_accuracy(a, train_labels, b, test_labels, k=min(k, len(a)), temperature=t)
            for kind, (k, t) in VOTERS.items()
        }
        if name != PIXELS:  # thousands of values: slow, and their PCA stands beside it
            right[name]["linear"] = linear_accuracy(a, train_labels, b, test_labels, groups=copies)
    classes = len(np.unique(train_labels))
    crops = _two_crops(ways, other, evenly(test, RETRIEVED))
    about = {
        "split": how,
        "n_train": len(train),
        "n_test": len(test),
        "n_seen": seen,
        "n_leaked": leaked,
        "classes": classes,
        "voters": {kind: min(k, len(train)) for kind, (k, _) in VOTERS.items()},
        "clusters": _clusters(ask[ENCODER], test_labels, classes),
        **_spread(ask[ENCODER], crops, ENCODER),
        "before": {
            **(_clusters(ask[START], test_labels, classes) or {}),
            **_spread(ask[START], crops, START),
        },
    }
    return Tested(right, other.manifest.hashes[test], about)


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
    kept = rows[codes[rows] >= 0]
    if len(kept) < 2:
        what = "learn from" if classes is None else "test on"
        raise ValueError(
            f"only {len(kept)} of {len(rows)} images to {what} have a label, and at least two are "
            "needed. Name the column (or 'folder') with --label, or give more images."
        )
    return kept, codes[kept]


def _clusters(vectors: np.ndarray, labels: np.ndarray, k: int) -> dict[str, float] | None:
    if not 2 <= k < len(vectors):
        return None
    found = cluster_scores(vectors, labels, k=k)
    return {"nmi": found.nmi, "ari": found.ari, "ami": found.ami, "acc": found.acc, "k": k}


def _spread(
    vectors: np.ndarray, crops: tuple[Features, Features] | None, name: str
) -> dict[str, float | None]:
    """Rank of vectors, and how close and how even crops lie; None where there is no such thing."""
    found: dict[str, float | None] = {"rankme": rankme(vectors) if vectors.any() else None}
    if crops is None:
        return {**found, "alignment": None, "uniformity": None}
    first, second = (side[name] for side in crops)
    return {**found, "alignment": alignment(first, second), "uniformity": uniformity(first)}


def _again(ways: Ways, opened: Opened, tell: Callable[[str], None]) -> Tested:
    """Instance retrieval: one crop of an image is to find another of it among those of others."""
    if isinstance(opened.images, np.ndarray):
        raise ValueError(
            "vectors have no crops, so none can be found again from another. Name their labels "
            "with --label."
        )
    hashes = opened.manifest.hashes
    _, first = np.unique(hashes[opened.rows].astype(np.str_), return_index=True)
    rows = opened.rows[np.sort(first)]  # of every content once: a copy is no rival
    if len(rows) < 2:
        raise ValueError(
            f"an image is found again among others, and there are {len(rows)} in all. Give more."
        )
    seen = trained_on(ways.fitted, opened)[rows]
    asked, others = evenly(rows[~seen], RETRIEVED), rows[seen]
    which = "images it was not trained on"
    if len(asked) < 2:
        asked, others = evenly(rows, RETRIEVED), rows[:0]
        which = "images, on which it was trained"
    every = np.concatenate([asked, evenly(others, RETRIEVED - len(asked))])
    tell(f"Looking for {len(asked)} {which} among {len(every)} by another crop.")
    right: Right = {name: {} for name in (ENCODER, START, PCA_NAME, PIXELS)}
    about: dict[str, Any] = {
        "split": f"{len(asked):,} {which}, each found again among {len(every):,} from another crop",
        "n_train": 0,
        "n_test": len(asked),
        "classes": None,
    }
    for kind, plan in (("recall", TWO_CROPS), ("recall_colour", TWO_COLOURS)):
        sides = crops_of(ways, opened, every, plan)
        pca = PCA.fit(sides[0][PIXELS], min(ways.fitted.encoder.dim, *sides[0][PIXELS].shape))
        for side in sides:
            side[PCA_NAME] = pca(side[PIXELS])
        for name, found in right.items():
            found[kind] = recall_at_1(sides[0][name], sides[1][name])[: len(asked)]
        if kind == "recall":
            about |= _spread(sides[0][ENCODER], sides, ENCODER)
            about["before"] = _spread(sides[0][START], sides, START)
    return Tested(right, hashes[asked], about)


def _two_crops(ways: Ways, opened: Opened, rows: np.ndarray) -> tuple[Features, Features] | None:
    if isinstance(opened.images, np.ndarray):  # vectors have none
        return None
    return crops_of(ways, opened, rows, TWO_CROPS)


CROP = replace(LIGHT, crop=(0.5, 0.9))
COLOUR = replace(CROP, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
TWO_CROPS = Plan(main=(CROP, CROP))
TWO_COLOURS = Plan(main=(COLOUR, COLOUR))


def crops_of(ways: Ways, opened: Opened, rows: np.ndarray, plan: Plan) -> tuple[Features, Features]:
    """Vectors of two versions of the same images, by encoder, start and raw pixels.

    Memory holds the views of one batch.
    """
    method, start = ways.fitted.method, ways.start
    loader = Loader(
        opened.images, rows, plan, batch=256, seed=0, image_size=method.encoder.image_size,
        mean=method.encoder.mean, std=method.encoder.std, threads=2,
    )  # fmt: skip
    device = device_of(method)
    parts: tuple[dict[str, list[np.ndarray]], dict[str, list[np.ndarray]]] = (
        {ENCODER: [], START: [], PIXELS: []}, {ENCODER: [], START: [], PIXELS: []},
    )  # fmt: skip
    for i in range(0, len(rows), 256):
        views = loader.make(rows[i : i + 256], epoch=0)
        for view, made in zip(views.main, parts, strict=True):
            one = [replace(views, main=(view,))]
            made[ENCODER].append(features(method.encode, method, iter(one), device=device))
            made[START].append(features(start, start, iter(one), device=device))
            made[PIXELS].append(_small_pixels(view))
    loader.close()
    first, second = ({name: np.concatenate(each) for name, each in m.items()} for m in parts)
    return first, second


def pixels_of(
    opened: Opened, rows: np.ndarray, image_size: int, *, most: int | None = None
) -> np.ndarray:
    """Raw pixels in [0, 1] at 32 pixels or less; 16 where they would not fit in a gigabyte.

    Args:
        opened: images, or vectors.
        rows: of them.
        image_size: of the encoder they are compared with: no more pixels than it sees [pixels].
        most: rows of the largest set that they are compared with, since all sets have to be as
            sharp; by default these rows are the only ones.
    """
    side = min(32, image_size)
    count = len(rows) if most is None else most
    side = side if count * side**2 * 12 < LARGEST else min(16, side)
    views = whole_images(
        opened.images, rows, image_size=side, mean=(0.0,) * 3, std=(1.0,) * 3, threads=2
    )
    return np.concatenate([batch.main[0].data.flatten(1).numpy() for batch in views])


def _small_pixels(view: View) -> np.ndarray:
    data = view.unit()
    if data.ndim == 4:
        data = torch.nn.functional.adaptive_avg_pool2d(data, min(32, data.shape[-1]))
    return data.flatten(1).float().numpy()


def verdict(
    right: Right,
    kind: str,
    *,
    groups: np.ndarray | None = None,
    voters: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Better than every baseline beyond the luck of these test items, or not; in plain words.

    Args:
        right: by name of the way and kind of score, whether each test item came out right.
        kind: the score that counts.
        groups: content of each test item.
        voters: neighbours that voted, by kind.
    """
    kind = kind if kind in right[ENCODER] else "linear"
    mine = right[ENCODER][kind]
    won: list[str] = []
    lost: list[str] = []
    gaps: dict[str, dict[str, Any]] = {}
    for name in (START, PCA_NAME, PIXELS):
        if kind not in right[name]:
            continue
        gap = difference(mine, right[name][kind], groups=groups)
        surely = clear(gap, mine, right[name][kind], groups=groups)
        gaps[name] = {**asdict(gap), "clear": surely}
        value, low, high = (100 * part for part in (gap.value, gap.low, gap.high))
        text = f"{name} ({value:+.1f} points, {low:+.1f} to {high:+.1f})"
        (won if surely else lost).append(text)
    title = f"{title_of(kind, voters)} {100 * float(np.mean(mine)):.1f} %"
    claim, note = "worth it", ""
    if kind.startswith("recall"):
        claim = "more invariant"
        note = " This measures invariance, not usefulness, which only labels can tell (--label)."
    if not lost:
        text = f"{claim.capitalize()}: {title}, better than {_listed(won)}."
    elif not won:
        text = f"Not {claim}: {title}, not clearly better than {_listed(lost)}."
    else:
        text = (
            f"Not clearly {claim}: {title}, better than {_listed(won)}, but not clearly better "
            f"than {_listed(lost)}."
        )
    return {"better": not lost, "score": kind, "gaps": gaps, "text": text + note}


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
