"""Scores and verdicts on data whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from erg.apply.scores import ENCODER, PCA_NAME, PIXELS, START, score, verdict
from erg.data.synthetic import world
from erg.train.fit import Fitted, fit
from erg.train.run import Run


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    run = Run(
        method="SimCLR", encoder="conv", image_size=32, data="synthetic:80", batch=16, steps=2
    )
    return fit(run, out=tmp_path_factory.mktemp("runs") / "r")


def test_labelled_scores_compare_four_ways(fitted: Fitted) -> None:
    found = score(fitted, "synthetic:80", label="shape", test="synthetic:120")
    rows = {row["name"]: row["scores"] for row in found["rows"]}
    assert list(rows) == [ENCODER, START, PCA_NAME, PIXELS]
    assert set(rows[ENCODER]) == {"knn20", "knn200", "linear"}
    assert found["n_train"] == 80
    assert found["n_test"] == 120
    assert found["classes"] == 8
    assert 0 <= found["clusters"]["nmi"] <= 1
    assert 1 <= found["rankme"] <= 64


def test_raw_pixels_score_is_that_of_a_plain_computation(fitted: Fitted) -> None:
    """32-pixel sources need no resizing, so the vectors are the pixels themselves."""
    from erg.evaluate.knn import knn_accuracy

    scenes = world(150, size=32)
    images, labels = scenes.images, scenes.factors["texture"]
    folder = fitted.folder.parent / "arrays"
    folder.mkdir(exist_ok=True)
    for name, rows in (("a", slice(0, 100)), ("b", slice(100, 150))):
        write_parquet(folder / f"{name}.parquet", images[rows], labels[rows])
    found = score(fitted, str(folder / "a.parquet"), label="label", test=str(folder / "b.parquet"))
    flat = images.transpose(0, 3, 1, 2).reshape(150, -1).astype(np.float32) / 255
    expected = knn_accuracy(flat[:100], labels[:100], flat[100:], labels[100:], k=20)
    rows = {row["name"]: row["scores"] for row in found["rows"]}
    assert rows[PIXELS]["knn20"]["value"] == pytest.approx(expected.mean(), abs=1e-9)


def test_one_set_is_split_by_content(fitted: Fitted) -> None:
    found = score(fitted, "synthetic:200", label="shape")
    assert found["n_train"] + found["n_test"] == 200
    assert 20 <= found["n_test"] <= 60
    assert found["split"] == "80 / 20 by content hash"
    assert found == score(fitted, "synthetic:200", label="shape")


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


def test_labels_that_are_not_there(fitted: Fitted) -> None:
    with pytest.raises(ValueError, match=r".+"):
        score(fitted, "synthetic:40", label="nonsense")


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def png(image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        return out.getvalue()

    table = {"image": [png(image) for image in images], "label": pa.array(labels, pa.int32())}
    pq.write_table(pa.table(table), path)
