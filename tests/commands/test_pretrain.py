"""erg pretrain, from the outside."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import erg
from erg import allocator
from erg.cli import main
from erg.commands.as_python import python_of
from erg.commands.dry_run import dry_run
from erg.commands.pretrain import look
from erg.data.scenes import world
from erg.data.source import DataError, open_source
from erg.durable import read_json
from erg.schedule import Cosine
from erg.train.loop import Loop
from erg.train.run import Optimiser, Run
from erg.views.plan import Augmentation, Masking, Plan

QUICK = ["--encoder", "conv", "--image-size", "16", "--batch", "16", "--steps", "2"]
SMALL = [*QUICK, "--encoder.width", "4", "--encoder.stages", "2"]


def put(folder: Path, images: np.ndarray) -> Path:
    """Pictures in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(images):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty pictures, and masks beside them."""
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    for i, picture in enumerate(world(40, size=24).images):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i:02d}.jpg")
        Image.fromarray(np.tri(24, dtype=bool)).save(tmp_path / "masks" / f"{i:02d}.png")
    return tmp_path / "photos"


def test_masks_are_taken_from_the_folder_that_is_named(photos: Path, capsys) -> None:
    out, masks = photos.parent / "run", photos.parent / "masks"
    small = ["--method.hidden", "8", "--method.dim", "4", "--method.background", "1"]
    arguments = [str(photos), "--mask", str(masks), "--method", "RELICv2", *small, *QUICK]
    assert main(["pretrain", *arguments, "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "40 of 40 images have masks, which keep 52% of them" in said
    assert "mask=" in said
    assert json.loads((out / "run.json").read_text())["mask"] == str(masks)
    first = (out / "pictures" / "views.webp").read_bytes()
    (out / "pictures" / "views.webp").unlink()
    assert main(["report", str(out), "--redraw"]) == 0
    assert (out / "pictures" / "views.webp").read_bytes() == first
    wrong = [str(photos), "--mask", "nowhere", "--method", "RELICv2", *QUICK]
    assert main(["pretrain", *wrong, "--out", str(photos.parent / "other")]) != 0
    assert "There is no folder of masks 'nowhere'" in "".join(capsys.readouterr())


@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is another one")
def test_a_dry_run_measures_with_memory_kept_as_training_does(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    step = Loop.step

    def noted(*given: Any, **how: Any) -> Any:
        inside.append(allocator._Inside.count)
        return step(*given, **how)

    monkeypatch.setattr(allocator, "chosen", lambda: None)
    monkeypatch.setattr(Loop, "step", noted)
    assert main(["pretrain", str(photos), "--dry-run", *SMALL]) == 0
    assert inside
    assert set(inside) == {1}


def test_a_dry_run_looks_at_masks(photos: Path, capsys) -> None:
    masks = photos.parent / "masks"
    small = ["--method.hidden", "8", "--method.dim", "4", "--method.background", "1"]
    dry = ["pretrain", str(photos), "--dry-run", *SMALL, "--mask"]
    (masks / "03.png").unlink()
    (photos / "05.jpg").write_bytes(b"no image")
    assert main([*dry, str(masks), "--method", "RELICv2", *small]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "38 of 39 images have masks, which keep 52% of them" in said
    assert "minutes in all." in said
    assert main([*dry, "nowhere", "--method", "RELICv2", *small]) == 3
    assert "There is no folder of masks 'nowhere'" in capsys.readouterr().err
    assert main([*dry, str(masks), "--method", "SimCLR"]) == 2
    assert "no view of SimCLR is made with masks" in capsys.readouterr().err
    for i in range(40):
        Image.new("L", (24, 24), 1).save(masks / f"{i:02d}.png")
    assert main([*dry, str(masks), "--method", "RELICv2", *small]) == 3
    assert "the masks are black" in capsys.readouterr().err


def test_a_resumed_run_is_judged_by_its_labels_and_may_be_changed_where_that_is_said(
    tmp_path: Path, capsys
) -> None:
    out = str(tmp_path / "run")
    begun = ["pretrain", "synthetic:60", "--label", "shape", "--no-report", "--out", out, *SMALL]
    assert main(begun) == 0
    again = ["pretrain", "--resume", out]
    assert main([*again, "--steps", "3", "--lr=0.005", "--not-finite", "skip"]) == 0
    said = capsys.readouterr().out.splitlines()
    changes = [line for line in said if line.startswith("Changed: ")]
    assert changes[:2] == [
        "Changed: steps 3, which was 2.", "Changed: not_finite skip, which was stop.",
    ]  # fmt: skip
    assert changes[2].startswith("Changed: lr 0.005, which was ")
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["label"] == "shape"
    assert "knn20" in scores["rows"][0]["scores"]
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (told["steps"], told["not_finite"], told["optimiser"]["lr"]) == (3, "skip", 0.005)
    assert told["optimiser"]["weight_decay"] == 1e-4, "what is not said stays"
    last = (tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 3
    assert main([*again, "--steps", "2"]) == 2
    assert "it can have more, not fewer (got --steps 2)" in capsys.readouterr().err
    assert main([*again, "--method", "BYOL"]) == 2
    assert "the run's method is SimCLR" in capsys.readouterr().err


MEANINGLESS = [
    (["--resume", "run", "--batch", "8"], "--batch would change nothing: with --resume"),
    (["--resume", "run", "--out=there", "--no-recompute", "--method.temperature", "1"],
     "--out, --no-recompute, --method.temperature would change nothing"),
    (["--resume", "run", "--minutes", "3"], "--minutes would change nothing"),
    (["--from", "run.json", "--label=shape"], "--label would change nothing: with --from"),
    (["--from", "run.json", "--encoder.width", "8"], "--encoder.width would change nothing"),
    (["--resume", "run", "--from", "run.json"], "Give one of them"),
    (["photos", "--steps", "3", "--minutes", "1"], "--steps and --minutes each say how long"),
    (["photos", "--nodes", "2"], "--nodes 2 cannot be started from one machine"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), MEANINGLESS, ids=lambda v: str(v)[:50])
def test_an_option_that_would_change_nothing_is_named(
    arguments: list[str], said: str, capsys
) -> None:
    assert main(["pretrain", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_what_is_about_this_machine_may_be_said_of_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = tmp_path / "run"
    assert main(["pretrain", "synthetic:40", "--no-report", "--out", str(out), *SMALL]) == 0
    monkeypatch.chdir(tmp_path)
    same = ["--device", "cpu", "--no-report", "--max_skipped", "0.3", "--cache-gb", "1"]
    same += ["--method", "SimCLR", "--devices", "1", "--nodes", "1"]
    assert main(["pretrain", "synthetic:40", "--resume", "run", *same]) == 0
    repeated = ["--from", "run/run.json", "--out", "other", "--seed", "1", "--strategy", "ddp"]
    assert main(["pretrain", *repeated, *same]) == 0
    told = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "other")]
    assert (told[0].pop("seed"), told[1].pop("seed")) == (0, 1)
    assert told[0] == told[1]
    assert "Changed: seed 1, which was 0." in capsys.readouterr().out.splitlines()


def test_as_many_may_be_broken_as_training_allows(tmp_path: Path, capsys) -> None:
    photos = put(tmp_path / "photos", world(24, size=24).images)
    for i in range(16):
        (photos / f"broken{i}.png").write_bytes(b"no image")
    out = tmp_path / "run"
    command = ["pretrain", str(photos), "--max-skipped", "0.5", "--out", str(out), *SMALL]
    assert main(command) == 0
    assert (out / "scores.json").exists()
    assert (out / "report.html").exists()
    said = capsys.readouterr().out
    assert said.count("24 readable items of 40") == 1, "training has said it"
    assert main(["report", str(out), "--redraw"]) == 0
    assert "24 readable items of 40" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("folder", "a probe needs at least two classes (got 1)."),
        (None, "an image is found again among others, and there are 1 in all."),
    ],
)
def test_scores_that_cannot_be_computed_do_not_cost_the_page(
    label: str | None, why: str, tmp_path: Path, capsys
) -> None:
    """One class, or one picture and its copies."""
    images = world(24, size=24).images
    put(tmp_path / "photos" / "one", images if label else images[[0] * 24])
    out = tmp_path / "run"
    labelled = ["--label", label] if label else []
    command = ["pretrain", str(tmp_path / "photos"), "--out", str(out), *labelled, *SMALL]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"Not scored: {why}" in said
    assert f"erg evaluate {out} DATA --label WHERE" in said
    assert not (out / "scores.json").exists()
    assert (out / "pictures" / "map.json").exists()
    assert "<html" in (out / "report.html").read_text()


def test_a_file_that_cannot_be_opened_does_not_end_a_run_before_it_begins(tmp_path: Path) -> None:
    photos = put(tmp_path / "photos", world(3, size=24).images)
    (photos / "00a.png").symlink_to(photos / "gone.png")
    seen = look(open_source(str(photos)))
    assert (seen.images, seen.side) == (4, 24)
    for i in range(3):
        (photos / f"{i:02d}.png").unlink()
    with pytest.raises(DataError, match=r"none of 1 items looked at .*No such file"):
        look(open_source(str(photos)))


CLUSTERS = ["--method", "DeepCluster", "--method.hidden", "8", "--method.dim", "4"]
CLUSTERS += ["--method.small-crops", "0", "--method.size", "100", "--dry-run"]


def test_a_dry_run_does_not_refuse_what_would_run(tmp_path: Path, capsys) -> None:
    """64 images are too few for 65 clusters, and the set is not; one of them cannot be opened."""
    photos = put(tmp_path / "photos", world(70, size=16).images)
    (photos / "000.png").symlink_to(photos / "gone.png")
    command = ["pretrain", str(photos), *CLUSTERS, *SMALL, "--method.clusters", "65"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Opened 63 items, 1 could not be read." in said
    assert "after an epoch was left out, with so few images: 65 clusters need as many" in said
    assert "minutes in all." in said
    # Of so few images all are opened, and training would be refused as well.
    assert main(["pretrain", "synthetic:40", *CLUSTERS, *SMALL]) == 2
    assert "256 clusters need as many images (got 40)" in capsys.readouterr().err


def test_a_dry_run_takes_the_batch_that_a_step_holds(capsys) -> None:
    """A batch of 64 could not be whitened; memories have a row for every image."""
    sized = ["--image-size", "16", "--encoder", "conv", "--encoder.width", "4", "--steps", "2"]
    whiten = ["--method", "WMSE"]
    assert main(["pretrain", "synthetic:300", *whiten, *sized, "--batch", "256", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Opened 256 items" in said
    assert "with 256 of 256 images at once" in said
    parts = [*sized, "--batch", "256", "--accumulate", "8", "--dry-run"]
    assert main(["pretrain", "synthetic:300", *parts]) == 0
    said = capsys.readouterr().out
    assert "Opened 64 items" in said
    assert "with 32 of 32 images at once" in said


def test_a_run_that_is_repeated_on_other_data_has_a_memory_for_them(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    command = ["pretrain", "--no-report", *SMALL]
    assert main([*command, "synthetic:40", "--method", "InstanceDiscrimination",
                 "--out", str(first)]) == 0  # fmt: skip
    again = ["pretrain", "synthetic:80", "--from", str(first / "run.json"), "--no-report"]
    assert main([*again, "--out", str(other)]) == 0
    sizes = [read_json(f / "run.json")["method_args"]["size"] for f in (first, other)]
    assert sizes == [40, 80]


def test_a_dry_run_says_how_many_steps_fit_and_computes_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from erg.train import loop

    limit = ["--dry-run", "--minutes", "2"]
    assert main(["pretrain", "synthetic:40", *limit, *SMALL[:6], *SMALL[8:]]) == 0
    said = capsys.readouterr().out
    assert " steps in 2 minutes." in said
    assert "minutes in all" not in said
    asked = []

    def noted(*_: object, device: object) -> None:
        asked.append(str(device))
        raise InterruptedError

    monkeypatch.setattr(loop, "Loop", noted)
    run = Run(method="SimCLR", encoder="conv", image_size=16, steps=2)
    with pytest.raises(InterruptedError):
        dry_run(run, open_source("synthetic:4"), device="meta")
    assert asked == ["meta"]


def test_a_dry_run_of_nothing_readable_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    run = Run(method="SimCLR", encoder="conv", image_size=16, steps=2)
    with pytest.raises(DataError, match="none of 1 items"):
        dry_run(run, open_source(str(tmp_path)))


def test_the_python_that_is_printed_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    view = Augmentation(crop=None, sigma=(0.1, 1.0), mask=Masking(grid=(4, 4)))
    run = Run(
        method="KMeans", method_args={"beta": math.inf, "warm": Cosine(0.5, 1.0)}, encoder="conv",
        encoder_args={"blocks": [1], "width": 4}, image_size=32, data="it's/photos", steps=7,
        plan=Plan(main=(view,), pairs="itself"), optimiser=Optimiser(name="lars", lr=2e-3),
    )  # fmt: skip
    monkeypatch.setattr(erg, "fit", lambda *given, **limits: (given, limits))
    for minutes, limits in ((3, {"minutes": 3}), (None, {})):
        line = python_of(run, minutes)
        found = eval(line.removeprefix("In Python: "), {"erg": erg})
        assert found == ((run,), limits)
    assert python_of(replace(run, plan=None, method_args={}), None).endswith(
        "data=\"it's/photos\", optimiser=erg.Optimiser(name='lars', lr=0.002), steps=7))"
    )
