"""The verdict on an encoder, in plain words: better than every baseline beyond luck, or not."""

from dataclasses import asdict
from typing import Any

import numpy as np

from erg.apply.ways import BASELINES, ENCODER
from erg.catalog import find
from erg.evaluate.intervals import clear, difference
from erg.train.fitted import Fitted

TITLES = {
    "knn20": "20-NN accuracy",
    "knn200": "200-NN accuracy",
    "linear": "linear probe accuracy",
    "recall": "recall@1 between two crops",
    "recall_colour": "recall@1 between crops of changed colour",
}

Right = dict[str, dict[str, np.ndarray]]
"""By name of the way and kind of score, whether each test item came out right."""


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


def verdict(
    right: Right,
    kind: str,
    *,
    groups: np.ndarray | None = None,
    voters: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Better than every baseline beyond the luck of these test items, or not; in plain words.

    Args:
        right: which test items came out right.
        kind: the score that counts.
        groups: content of each test item.
        voters: neighbours that voted, by kind.
    """
    kind = kind if kind in right[ENCODER] else "linear"
    mine = right[ENCODER][kind]
    won: list[str] = []
    lost: list[str] = []
    gaps: dict[str, dict[str, Any]] = {}
    for name in BASELINES:
        if kind not in right[name]:
            continue
        gap = difference(mine, right[name][kind], groups=groups)
        theirs = right[name][kind]
        surely = clear(gap, mine, theirs, groups=groups)
        behind = clear(difference(theirs, mine, groups=groups), theirs, mine, groups=groups)
        gaps[name] = {**asdict(gap), "clear": surely, "behind": behind}
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
