"""Honest scores: the encoder beside what it was before training, PCA and raw pixels.

With labels: weighted k-nearest neighbours and a linear probe, on a test set that nothing was
chosen on. Without: instance retrieval on images held out of training, which measures invariance,
not usefulness. Every score has a bootstrap interval, exact duplicates resampled together, and the
verdict rests on paired differences over the same test items.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from erg.apply.embed import Opened, evenly, known_already, open_for, trained_on
from erg.apply.verdict import Right, primary, verdict
from erg.apply.ways import (
    BASELINES,
    ENCODER,
    PIXELS,
    START,
    TWO_COLOURS,
    TWO_CROPS,
    Features,
    Ways,
    crops_of,
)
from erg.data.splits import split
from erg.evaluate.clusters import cluster_scores
from erg.evaluate.intervals import bootstrap
from erg.evaluate.knn import knn_accuracy
from erg.evaluate.linear import linear_accuracy
from erg.evaluate.rank import alignment, rankme, uniformity
from erg.evaluate.retrieval import recall_at_1
from erg.train.fitted import Fitted

RETRIEVED = 1000
VOTERS = {"knn20": (20, 0.07), "knn200": (200, 0.1)}
"""Neighbours that vote, and the temperature of their votes."""


@dataclass(frozen=True)
class Tested:
    """What was measured on the test items.

    Args:
        right: which test items came out right.
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
    ways.add_pca(fit_on, ask)
    copies = opened.manifest.hashes[train]
    right: Right = {}
    for name in (ENCODER, *BASELINES):
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
            "vectors have no crops, so none can be found again from another, and an array brings "
            "no labels. Embed it (erg embed), and judge the vectors by labels of your own with "
            "erg.evaluate.knn."
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
    right: Right = {name: {} for name in (ENCODER, *BASELINES)}
    about: dict[str, Any] = {
        "split": f"{len(asked):,} {which}, each found again among {len(every):,} from another crop",
        "n_train": 0,
        "n_test": len(asked),
        "classes": None,
    }
    for kind, plan in (("recall", TWO_CROPS), ("recall_colour", TWO_COLOURS)):
        sides = crops_of(ways, opened, every, plan)
        ways.add_pca(*sides)
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
