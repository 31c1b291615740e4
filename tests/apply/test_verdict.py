"""Verdicts on answers that are known."""

import numpy as np

from erg.apply.verdict import title_of, verdict
from erg.apply.ways import ENCODER, PCA_NAME, PIXELS, START


def test_verdict_needs_every_baseline_beaten_beyond_luck() -> None:
    random = np.random.default_rng(0)

    def right(share: float) -> dict[str, np.ndarray]:
        return {"knn20": random.random(1000) < share}

    good = {ENCODER: right(0.8), START: right(0.4), PCA_NAME: right(0.3), PIXELS: right(0.3)}
    assert verdict(good, "knn20")["better"]
    assert verdict(good, "knn20")["text"].startswith("Worth it")
    same = {**good, START: right(0.8)}
    assert not verdict(same, "knn20")["better"]
    assert verdict(same, "knn20")["text"].startswith("Not clearly worth it")
    bad = {name: right(0.3) for name in good}
    assert verdict(bad, "knn20")["text"].startswith("Not worth it")


def test_the_unlabelled_verdict_claims_no_worth() -> None:
    right = {
        ENCODER: np.ones(50, dtype=bool), START: np.zeros(50, dtype=bool),
        PCA_NAME: np.zeros(50, dtype=bool), PIXELS: np.zeros(50, dtype=bool),
    }  # fmt: skip
    for change, start in (
        ({}, "More invariant: "),
        ({START: right[ENCODER]}, "Not clearly more invariant: "),
        ({ENCODER: right[START]}, "Not more invariant: "),
    ):
        asked = {name: {"recall_colour": each} for name, each in {**right, **change}.items()}
        text = verdict(asked, "recall_colour")["text"]
        assert text.startswith(start)
        assert "orth it" not in text
        assert text.endswith(
            "This measures invariance, not usefulness, which only labels can tell (--label)."
        )


def test_few_test_images_are_no_verdict() -> None:
    def ways(n: int) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: {"knn20": np.full(n, name == ENCODER)}
            for name in (ENCODER, START, PCA_NAME, PIXELS)
        }

    assert not verdict(ways(4), "knn20")["better"]
    assert verdict(ways(40), "knn20")["better"]
    assert not verdict(ways(40), "knn20", groups=np.arange(40) % 4)["better"]
    gaps = verdict(ways(40), "knn20")["gaps"]
    assert gaps[PCA_NAME] == {"value": 1.0, "low": 1.0, "high": 1.0, "clear": True, "behind": False}


def test_behind_is_as_sure_as_ahead() -> None:
    for n, behind in ((3, False), (40, True)):
        right = {
            name: {"knn20": np.full(n, name != ENCODER)}
            for name in (ENCODER, START, PCA_NAME, PIXELS)
        }
        gaps = verdict(right, "knn20")["gaps"]
        assert {gap["behind"] for gap in gaps.values()} == {behind}


def test_a_score_is_called_by_the_neighbours_that_voted() -> None:
    voters = {"knn20": 20, "knn200": 80}
    assert title_of("knn200", voters) == "80-NN accuracy"
    assert title_of("linear", voters) == "linear probe accuracy"
    right = {name: {"knn20": np.ones(9, dtype=bool)} for name in (ENCODER, START, PCA_NAME, PIXELS)}
    assert "7-NN accuracy 100.0 %" in verdict(right, "knn20", voters={"knn20": 7})["text"]
