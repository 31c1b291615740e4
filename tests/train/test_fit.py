"""fit: where decoded images are kept; masks, from a table to views without backgrounds."""

import io
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from erg.apply.embed import open_for
from erg.apply.pictures import VIEW, draw_pictures
from erg.data import cache
from erg.data.scenes import world
from erg.data.source import DataError, open_source
from erg.encoders import build_encoder, save_encoder
from erg.train import fit as fitting
from erg.train.checkpoint import state_hash
from erg.train.data import with_masks
from erg.train.fit import fit
from erg.train.fitted import Fitted, load
from erg.train.preempt import Stopped
from erg.train.run import Run
from erg.views.plan import LIGHT, Augmentation, Masking, Plan, two_views

SMALL = {"hidden": 8, "dim": 4, "large_crops": 2, "small_crops": 0, "background": 1.0}


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixty pictures whose masks are white in the middle; two have none, one is damaged."""
    square = np.zeros((32, 32), dtype=np.uint8)
    square[8:24, 8:24] = 255
    masks: list[bytes | None] = [encoded(square)] * 60
    masks[3], masks[4], masks[5] = None, None, b"no image"
    columns = {"image": [encoded(image) for image in world(60, size=32).images], "salient": masks}
    pq.write_table(pa.table(columns), tmp_path / "pictures.parquet", row_group_size=20)
    return tmp_path / "pictures.parquet"


def a_run(table: Path, **changes: object) -> Run:
    run = Run(
        method="RELICv2", method_args=SMALL, encoder="conv", encoder_args={"width": 4, "stages": 2},
        image_size=16, data=str(table), mask="salient", batch=16, steps=6, precision="32",
    )  # fmt: skip
    return replace(run, **changes)


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress) -> None:
        if progress.step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_a_run_with_masks_says_so_resumes_exactly_and_shows_what_it_saw(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = a_run(table), []
    through = fit(run, out=tmp_path / "through", tell=said.append)
    assert any(line.startswith("57 of 60 images have masks, which keep 25% of") for line in said)
    assert any("2 without a mask: The table holds no image in this row." in line for line in said)
    assert json.loads((through.folder / "run.json").read_text())["mask"] == "salient"
    assert not list(through.folder.glob("cache*"))

    with pytest.raises(Stopped):
        fit(run, out=tmp_path / "stopped", show=StopAt(4))
    assert sorted(p.name for p in (tmp_path / "stopped").glob("cache*")) == [
        "cache.u8", "cache.u8.json", "cache.u8.masks", "cache.u8.masks.json",
    ]  # fmt: skip
    with monkeypatch.context() as changed:  # the rest of it from a stream
        changed.setattr(cache, "default_budget", lambda _: 0)
        resumed = fit(run, out=tmp_path / "stopped", resume=True)
    assert state_hash(resumed.method) == state_hash(through.method)

    without = fit(replace(run, mask=None), out=tmp_path / "without", tell=said.append)
    assert "Backgrounds stay in all views, since no masks were given (--mask)." in said
    assert state_hash(without.method) != state_hash(through.method)
    assert not (without.folder / "masks.parquet").exists()

    source, found = open_source(table), load(through.folder)
    opened = open_for(found.encoder, source)
    images = with_masks(found, opened.images, opened.manifest, source)
    draw_pictures(found, replace(opened, images=images))
    sheet = np.asarray(Image.open(through.folder / "pictures" / "views.webp").convert("RGB"))
    colour = 255 * torch.tensor(found.encoder.mean).numpy()
    flat = (np.abs(sheet - colour) < 12).all(axis=2)
    assert flat[:VIEW, VIEW : 3 * VIEW].mean() > flat[:VIEW, :VIEW].mean() + 0.2
    assert with_masks(without, opened.images, opened.manifest, source) is opened.images


def test_decoded_images_are_kept_where_they_may_be_and_it_is_said(tmp_path: Path) -> None:
    told: dict[str, list[str]] = {"kept": [], "not kept": []}
    for name, limit in (("kept", None), ("not kept", 1e-6)):
        run = a_run(Path(), method="SimCLR", method_args={}, data="synthetic:40", mask=None)
        fitted = fit(run, out=tmp_path / name, tell=told[name].append, cache_gb=limit)
        told[name].append(state_hash(fitted.method))
    assert any(line.startswith("Decoded once: ") and "MB on disk" in line for line in told["kept"])
    assert any(line.startswith("Decoded whenever they are used") for line in told["not kept"])
    assert told["kept"][-1] == told["not kept"][-1], "the views are the same"


def test_started_again_by_torchrun_a_run_keeps_the_steps_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data="synthetic:60", batch=16, steps=1000, precision="32",
    )  # fmt: skip
    measured = replace(run, steps=7)
    monkeypatch.setattr(fitting, "measured", lambda *_: measured)
    with pytest.raises(Stopped):
        fit(run, out=tmp_path / "run", minutes=1, observers=(), show=StopAt(3))
    monkeypatch.setattr(fitting, "restarted", lambda: True)
    assert fit(run, out=tmp_path / "run", minutes=1, observers=()).run.steps == 7


VIT = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


def test_a_run_from_weights_is_loaded_as_it_began_wherever_these_are(tmp_path: Path) -> None:
    """Their normalisation is no weight, and their folder says what the run need not."""
    vit = build_encoder("vit_tiny_patch16_224", 16, **VIT)
    vit.mean, vit.std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    save_encoder(vit, tmp_path / "vit")
    save_encoder(build_encoder("conv", 16, width=6, stages=2), tmp_path / "conv")
    (tmp_path / "elsewhere").mkdir()
    for name, arguments in (("vit_tiny_patch16_224", VIT), ("conv", {})):
        folder = tmp_path / name.partition("_")[0]
        run = Run(
            method="SimCLR", method_args={"hidden": 8, "dim": 4}, encoder=name, image_size=16,
            encoder_args=arguments, init=str(folder), batch=16, steps=6, data="synthetic:60",
            precision="32",
        )  # fmt: skip
        through = fit(run, out=tmp_path / f"{name}-1", observers=())
        with pytest.raises(Stopped):
            fit(run, out=tmp_path / f"{name}-2", observers=(), show=StopAt(4))
        folder.rename(tmp_path / "elsewhere" / name)
        resumed = fit(run, out=tmp_path / f"{name}-2", observers=(), resume=True)
        for found in (resumed, load(through.folder)):
            assert state_hash(found.method) == state_hash(through.method)
            assert (found.encoder.mean, found.encoder.std) == (
                through.encoder.mean, through.encoder.std
            )  # fmt: skip
            assert found.encoder.arguments == through.encoder.arguments
    assert load(tmp_path / "vit_tiny_patch16_224-1").encoder.mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("encoder", "arguments", "data", "said"),
    [
        ("mlp", {}, "synthetic:20", "the data are images, and the encoder mlp takes vectors"),
        ("conv", {}, np.zeros((20, 16), np.float32), "are vectors, and the encoder conv takes im"),
        ("mlp", {}, np.zeros((20, 16), np.int64), "are tokens, and the encoder mlp takes vectors"),
        ("sequence", {}, np.zeros((20, 16), np.float32), "are vectors, and .* takes tokens"),
        ("mlp", {}, np.zeros((20, 15), np.float32), "have 15 features, and .* mlp takes 16"),
    ],
)
def test_data_of_another_kind_are_refused_and_nothing_is_left(
    encoder: str, arguments: dict, data: object, said: str, tmp_path: Path
) -> None:
    run = Run(
        method="SimCLR", encoder=encoder, encoder_args=arguments, image_size=16, batch=8, steps=1
    )
    with pytest.raises(DataError, match=said):
        fit(run, data, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


PATCHES = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
ANY_SIZE = {**PATCHES, "dynamic_img_size": True}
CONV = {"width": 4, "stages": 2}
WAVES = {"hidden": 8, "dim": 4, "directions": 8}
CODES = {"prototypes": 8, "hidden": 8, "dim": 4}
SMALL_CROP = Plan(main=(LIGHT, LIGHT), local=(replace(LIGHT, size=0.5),))
HIDDEN = Augmentation(mask=Masking(grid=(6, 6)))
ALONE = Plan(main=(LIGHT, LIGHT), pairs="alone")


@pytest.mark.parametrize(
    ("method", "arguments", "form", "size", "plan", "said"),
    [
        # Tiles and crops of sizes that a ViT of one size does not take.
        ("Jigsaw", {}, PATCHES, 48, None, "of 20 pixels.*it takes 48 pixels only"),
        ("RelativePosition", {}, PATCHES, 48, None, "pixels.*it takes 48 pixels only"),
        ("PIRL", {"dim": 4}, PATCHES, 48, None, "pixels.*it takes 48 pixels only"),
        ("MultiTask", {"colours": 0.0}, PATCHES, 48, None, "pixels.*it takes 48 pixels only"),
        ("LeJEPA", {**WAVES, "views": 2}, PATCHES, 48, SMALL_CROP, "of 24 pixels.*it takes 48"),
        # Sizes that the patches of a ViT of any size do not divide.
        ("DINO", CODES, {**ANY_SIZE, "patch_size": 14}, 42, None, "of 20 pixels.*divisible by"),
        ("SimCLR", {}, {**ANY_SIZE, "patch_size": 16}, 40, None, "of 40 pixels.*divisible by"),
        # Pairs that are none of the energy.
        ("MAE", {}, PATCHES, 48, Plan(main=(HIDDEN,)), "'views'.*MAE is of 'itself'"),
        ("SimCLR", {}, {}, 16, ALONE, "'alone'.*SimCLR is of 'views'"),
        # No pair at all.
        ("LeJEPA", {**WAVES, "views": 1}, {}, 16, None, "LeJEPA compares two main views.*has 1"),
        ("WMSE", {"views": 1, "dim": 4}, {}, 16, None, "WMSE compares two main views.*has 1"),
        ("RELICv2", {**SMALL, "large_crops": 1}, {}, 16, None, "RELICv2 compares two main views"),
    ],
)  # fmt: skip
def test_views_that_cannot_be_taken_are_refused_and_nothing_is_left(
    method: str, arguments: dict, form: dict, size: int, plan: Plan | None, said: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    encoder = "vit_tiny_patch16_224" if form else "conv"
    run = Run(
        method=method, method_args=arguments, encoder=encoder, encoder_args=form or CONV,
        image_size=size, plan=plan, batch=8, steps=1,
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=said):
        fit(run, images, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("method", ["Rotation", "Jigsaw", "RelativePosition", "PIRL"])
def test_vectors_that_would_be_turned_or_cut_are_refused_and_nothing_is_left(
    method: str, tmp_path: Path
) -> None:
    run = Run(method=method, encoder="mlp", image_size=16, batch=8, steps=1)
    with pytest.raises(ValueError, match=f"the plan of {method} turns, cuts or hides.*vectors"):
        fit(run, np.zeros((24, 16), np.float32), out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_tokens_that_would_be_cropped_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    small = {"vocabulary": 4, "width": 8, "depth": 1, "heads": 2}
    run = Run(
        method="SimCLR", encoder="sequence", encoder_args=small, image_size=6, batch=8, steps=1
    )
    with pytest.raises(ValueError, match="plan of SimCLR crops or colours, which tokens cannot be"):
        fit(run, np.ones((24, 6), np.int64), out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_whole_numbers_are_clustered_as_they_are(tmp_path: Path) -> None:
    run = Run(
        method="KMeans", method_args={"k": 2}, encoder="identity", image_size=5, batch=8, steps=2
    )
    i = np.arange(100)[:, None]
    fitted = fit(run, 1000 * (i % 2) + i + np.arange(5), out=tmp_path / "run")
    low, high = sorted(fitted.method.prototypes.tolist())
    assert max(low) < 104
    assert 1000 < min(high) < 1104


def test_a_run_that_never_began_is_begun_with_the_minutes_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(Path(), method="SimCLR", method_args={}, data="synthetic:40", mask=None)
    monkeypatch.setattr(fitting, "measured", lambda run, *_: replace(run, steps=2))
    assert fit(run, out=tmp_path / "run", minutes=1, observers=(), resume=True).run.steps == 2


def test_masks_that_no_view_takes_are_refused_before_anything_is_decoded(
    table: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    for run in (
        a_run(table, method="SimCLR", method_args={}),
        a_run(table, plan=two_views(LIGHT)),
        a_run(table, method_args={**SMALL, "background": 0.0}),
    ):
        with pytest.raises(ValueError, match=f"no view of {run.method} is made with masks"):
            fit(run, out=tmp_path / "run", prepared=lambda n, _: seen.append(n))
    assert not seen


@pytest.mark.parametrize(
    ("given", "why"), [([], "at least one"), ([np.zeros((0, 4, 3), np.uint8)], r"got uint8 \[0, 4")]
)
def test_nothing_cannot_be_embedded(given: list[np.ndarray], why: str, tmp_path: Path) -> None:
    method = Run(method="SimCLR", encoder="conv", image_size=16).build()
    fitted = Fitted(Run(method="SimCLR", encoder="conv", image_size=16), tmp_path, method.eval())
    with pytest.raises(ValueError, match=why):
        fitted.embed(given)
