"""Scores of data whose answer is known."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from erg.apply import scores, ways
from erg.apply.embed import known_already, open_for, trained_on, vectors_of
from erg.apply.scores import score
from erg.apply.ways import ENCODER, PCA_NAME, PIXELS, START, TWO_CROPS, Ways, crops_of, pixels_of
from erg.data.manifest import Manifest
from erg.data.scenes import world
from erg.data.splits import hold_out, split
from erg.evaluate.rank import rankme
from erg.train.fit import fit
from erg.train.fitted import Fitted
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


def test_without_labels_only_images_held_out_are_looked_for(fitted: Fitted) -> None:
    """Four of 80 are held out; each is to be found among all 80, by a naive loop."""
    found = score(fitted, "synthetic:80")
    held = hold_out(Manifest.load(fitted.folder / "manifest.parquet"))[1]
    assert found["n_test"] == len(held) == 4
    assert found["split"].startswith("4 images it was not trained on, each found again among 80")
    opened = open_for(fitted.encoder, "synthetic:80")
    every = np.concatenate([held, np.setdiff1d(opened.rows, held)])
    first, second = crops_of(Ways.of(fitted), opened, every, TWO_CROPS)
    rows = {row["name"]: row["scores"] for row in found["rows"]}
    for name in (ENCODER, START, PIXELS):
        a, b = (s[name] / np.linalg.norm(s[name], axis=1, keepdims=True) for s in (first, second))
        alone = [all(a[i] @ b[i] > a[i] @ b[j] for j in range(80) if j != i) for i in range(4)]
        assert rows[name]["recall"]["value"] == pytest.approx(np.mean(alone))
    # Data it has not seen is held out as a whole: 70 further scenes.
    assert score(fitted, "synthetic:150")["n_test"] == 74


def test_crops_of_large_images_are_made_a_few_at_once(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, made = open_for(fitted.encoder, "synthetic:80"), list[int]()
    rows = opened.rows[:40]
    together = crops_of(Ways.of(fitted), opened, rows, TWO_CROPS)
    monkeypatch.setattr(ways, "at_once", lambda *_: made.append(1) or 16)
    apart = crops_of(Ways.of(fitted), opened, rows, TWO_CROPS)
    assert made == [1]
    for one, other in zip(together, apart, strict=True):
        for name in (ENCODER, START, PIXELS):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_images_of_a_set_too_small_to_hold_some_out_are_said_to_be_those_of_training(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        scores, "trained_on", lambda _, opened: np.ones(len(opened.manifest), dtype=bool)
    )
    found = score(fitted, "synthetic:30")
    assert found["n_test"] == 30
    assert found["split"].startswith("30 images, on which it was trained,")


def test_what_the_encoder_and_the_probes_have_seen_of_the_test_set_is_said(
    fitted: Fitted,
) -> None:
    said: list[str] = []
    found = score(fitted, "synthetic:80", label="shape", test="synthetic:120", tell=said.append)
    assert found["n_leaked"] == 80
    assert found["split"].endswith("80 of the test images are also among those learned on")
    assert "80 of 120 test images are also among those that probes learn on." in said
    assert found["n_seen"] == 76
    opened = open_for(fitted.encoder, "synthetic:200")
    seen = trained_on(fitted, opened)
    held = hold_out(Manifest.load(fitted.folder / "manifest.parquet"))[1]
    assert set(np.flatnonzero(seen)) == set(range(80)) - set(held.tolist())
    test = split(opened.manifest)[1]
    one = score(fitted, "synthetic:200", label="shape")
    assert (one["n_seen"], one["n_leaked"]) == (int(seen[test].sum()), 0)
    assert known_already(opened, np.arange(5), opened, np.arange(3, 9)).tolist() == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_in_a_small_set_fewer_neighbours_vote(fitted: Fitted) -> None:
    found = score(fitted, "synthetic:80", label="shape", test="synthetic:120")
    assert found["voters"] == {"knn20": 20, "knn200": 80}


def test_figures_without_a_scale_stand_beside_those_before_training(fitted: Fitted) -> None:
    found = score(fitted, "synthetic:80", label="shape", test="synthetic:120")
    assert {"rankme", "alignment", "uniformity", "nmi", "ami", "ari"} <= set(found["before"])
    ways = Ways.of(fitted)
    opened = open_for(fitted.encoder, "synthetic:120")
    autocast = fitted.run.autocast(torch.device("cpu"))
    start = (ways.start, ways.start, ways.start)
    wanted = rankme(vectors_of(*start, opened, opened.rows, autocast=autocast))
    assert found["before"]["rankme"] == pytest.approx(wanted)


def test_an_encoder_that_gives_zeros_is_judged(fitted: Fitted) -> None:
    method = copy.deepcopy(fitted.method)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.zero_()
    found = score(Fitted(fitted.run, fitted.folder, method), "synthetic:200", label="shape")
    assert found["rankme"] is None
    assert not found["verdict"]["better"]


def test_sets_on_two_sides_of_the_limit_of_pixels_are_compared_at_one_sharpness(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with 101,000 images to learn on and 25,000 to test on: the larger set decides."""
    monkeypatch.setattr(ways, "LARGEST", 100 * 32 * 32 * 12)
    sides: list[int] = []

    def noted(*args, **how) -> np.ndarray:
        found = pixels_of(*args, **how)
        sides.append(found.shape[1])
        return found

    monkeypatch.setattr(ways, "pixels_of", noted)
    for train, test in (("synthetic:120", "synthetic:60"), ("synthetic:60", "synthetic:120")):
        found = score(fitted, train, label="shape", test=test)
        assert {row["name"] for row in found["rows"]} == {ENCODER, START, PCA_NAME, PIXELS}
    assert sides == [3 * 16 * 16] * 4


def test_crops_are_of_images_from_all_folders(
    fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are in the order of folders, so that the first ones are of the first class."""
    monkeypatch.setattr(scores, "RETRIEVED", 20)
    cropped: list[np.ndarray] = []

    def noted(ways: Ways, opened, rows: np.ndarray, plan):
        cropped.append(rows)
        return crops_of(ways, opened, rows, plan)

    monkeypatch.setattr(scores, "crops_of", noted)
    test = np.sort(split(open_for(fitted.encoder, "synthetic:150").manifest)[1])
    score(fitted, "synthetic:150", label="shape")
    assert cropped[0].tolist() == test[np.linspace(0, len(test) - 1, 20).astype(int)].tolist()
    cropped.clear()
    score(fitted, "synthetic:150")  # of 80 of them 76 were trained on
    new = np.flatnonzero(~trained_on(fitted, open_for(fitted.encoder, "synthetic:150")))
    assert cropped[0].tolist() == new[np.linspace(0, len(new) - 1, 20).astype(int)].tolist()
    cropped.clear()
    score(fitted, "synthetic:80")  # 4 are new: 16 others beside them
    assert len(cropped[0]) == 20
    assert cropped[0][4:].max() > 70


def test_what_cannot_be_read_is_said_and_the_others_are_scored(
    fitted: Fitted, tmp_path: Path
) -> None:
    from PIL import Image

    for i, image in enumerate(world(12, size=32).images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    for i in range(8):
        (tmp_path / f"broken{i}.png").write_bytes(b"no image")
    said: list[str] = []
    assert score(fitted, str(tmp_path), tell=said.append)["n_test"] == 12
    assert said[0].startswith("12 readable items of 20\n")


def test_vectors_have_no_crops(fitted: Fitted, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    with pytest.raises(ValueError, match="are vectors, and the encoder conv takes images"):
        score(fitted, vectors)
    run = Run(
        method="KMeans", method_args={"k": 2}, encoder="identity", image_size=5, batch=8, steps=1
    )
    of_vectors = fit(run, vectors, out=tmp_path / "run", observers=())
    with pytest.raises(ValueError, match="no crops") as failed:
        score(of_vectors, vectors)
    # An array is refused with --label, so that nobody is sent there.
    assert "--label" not in str(failed.value)


def test_copies_of_test_images_are_no_evidence(fitted: Fitted) -> None:
    scenes = world(140, size=32)
    images, labels = scenes.images, scenes.factors["texture"]
    folder = fitted.folder.parent / "copies"
    folder.mkdir(exist_ok=True)
    write_parquet(folder / "a.parquet", images[:100], labels[:100])
    write_parquet(folder / "b.parquet", images[100:], labels[100:])
    thrice = np.repeat(np.arange(100, 140), 3)
    write_parquet(folder / "c.parquet", images[thrice], labels[thrice])
    one, three = (
        score(fitted, str(folder / "a.parquet"), label="label", test=str(folder / name))
        for name in ("b.parquet", "c.parquet")
    )
    a, b = (s["rows"][0]["scores"]["knn20"] for s in (one, three))
    assert b["value"] == pytest.approx(a["value"])
    assert b["high"] - b["low"] == pytest.approx(a["high"] - a["low"], rel=0.15)
