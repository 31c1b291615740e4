"""The leaderboard: rows that say what was published, encoders of the published size."""

import json
from dataclasses import replace

import pytest
import torch

from erg import catalog
from erg.encoders import build_encoder, parameter_count
from erg.recipes.leaderboard import BACKBONES, ROWS, Row
from erg.recipes.needs import on_meta
from erg.schedule import Constant
from erg.train.run import Run

PUBLISHED = {  # millions, as many digits as are published
    "R50": 24, "R50x2": 94, "R50x4": 375, "R101": 43, "R152": 58, "R200x2": 250,
    "R152x3-SK": 795, "RG-256GF": 1300, "ViT-7B/16": 6716, "ViT-S/16": 21, "ViT-B/8": 85,
    "ViT-L/16": 304, "ViT-H/14": 632, "XCiT-S12/16": 26, "XCiT-M24/8": 84, "Swin-S/7": 49,
    "Swin-B/7": 87, "ViT-BN-H/14": 632, "ViT-BN-L/7": 304,
}  # fmt: skip


def one_of_each_method() -> list[Row]:
    found: dict[str, Row] = {}
    for row in ROWS:
        found.setdefault(row.run().method, row)
    return list(found.values())


def test_every_row_is_a_run_with_arguments_its_method_has() -> None:
    assert len({(row.method, row.backbone) for row in ROWS}) == len(ROWS) == 77
    for row in ROWS:
        run = row.run()
        assert 0 <= row.neighbours <= row.linear < 90, row
        assert run.encoder == BACKBONES[row.backbone][0]
        catalog.check_arguments(catalog.find(run.method), run.method_args)
        written = json.loads(json.dumps(run.to_json(), allow_nan=False))
        assert Run.from_json(written).to_json() == run.to_json()


@pytest.mark.parametrize(
    ("method", "backbone", "batch", "steps"),
    [
        ("SimCLR", "R50", 4096, 1000 * 1_281_167 / 4096),
        ("SwAV", "R50x2", 4096, 400 * 1_281_167 / 4096),
        ("SwAV", "R50x4", 2560, 400 * 1_281_167 / 2560),
        ("SwAV", "R50x5", 1536, 400 * 1_281_167 / 1536),
        ("MoCo v2", "R50", 256, 800 * 1_281_167 / 256),
        ("SEER", "RG-256GF", 8192, 1e9 / 8192),
        ("DINOv2", "ViT-L/16", 2048, 125_000),
    ],
)
def test_steps_are_the_epochs_published(
    method: str, backbone: str, batch: int, steps: float
) -> None:
    (row,) = (row for row in ROWS if (row.method, row.backbone) == (method, backbone))
    assert row.run().batch == batch
    assert row.run().steps == round(steps)


@pytest.mark.parametrize(
    ("method", "backbone", "wanted"),
    [
        # Reference, section 7, and the authors' scripts of the wider networks.
        ("SwAV", "R50", {"hidden": 2048, "queue": 0}),
        ("SwAV", "R50x4", {"hidden": 8192, "queue": 2560, "queue_from": 0.0}),
        ("SwAV", "R50x5", {"hidden": 10_240, "queue": 1536}),
        # Section 16: temperatures over 30 epochs for S and 50 for B; directions still 1 and 3.
        ("DINO", "ViT-S/16", {"warmup": 30 / 800, "freeze": 1 / 800}),
        ("DINO", "ViT-B/16", {"warmup": 50 / 400, "freeze": 3 / 400}),
        # Section 18: blocks for S, patches one by one for the others.
        ("iBOT", "ViT-S/16", {"prototypes": 8192, "warmup": 30 / 800}),
        ("iBOT", "ViT-L/16", {"prototypes": 8192, "blocks": False}),
        # Section 23: the default configuration, and that of the larger runs.
        ("DINOv2", "ViT-L/16", {"untied": False, "centring": "mean", "warmup": 0.3}),
        ("DINOv2", "ViT-g/14", {"dim": 384, "warmup": 0.06, "freeze": 0.002}),
        # Section 26: a predictor as deep as the paper's, with the encoder's heads.
        ("I-JEPA", "ViT-H/14", {"width": 384, "depth": 12, "heads": 16}),
        # Section 27: one momentum from the first step on.
        ("data2vec", "ViT-B/16", {"momentum": Constant(0.9998)}),
    ],
)
def test_arguments_are_those_published(method: str, backbone: str, wanted: dict) -> None:
    (row,) = (row for row in ROWS if (row.method, row.backbone) == (method, backbone))
    given = row.run().method_args
    assert {name: given.get(name) for name in wanted} == wanted


def crops_of(method: str, backbone: str) -> list[tuple[tuple[float, float] | None, int]]:
    """Areas and numbers of the large and of the small crops."""
    (row,) = (row for row in ROWS if (row.method, row.backbone) == (method, backbone))
    plan = row.run().plan
    assert plan is not None
    return [(views[0].crop, len(views)) for views in (plan.main, plan.local)]


def test_crops_are_those_published() -> None:
    assert crops_of("SwAV", "R50") == [((0.14, 1.0), 2), ((0.05, 0.14), 6)]
    assert crops_of("SwAV", "R50x2") == [((0.14, 1.0), 2), ((0.05, 0.14), 4)]
    assert crops_of("SwAV", "R50x4") == [((0.08, 1.0), 2), ((0.08, 0.14), 4)]
    assert crops_of("DINO", "R50") == [((0.14, 1.0), 2), ((0.05, 0.14), 8)]
    assert crops_of("DINO", "ViT-S/8") == [((0.25, 1.0), 2), ((0.05, 0.25), 6)]
    assert crops_of("iBOT", "ViT-B/16") == [((0.32, 1.0), 2), ((0.05, 0.32), 10)]
    assert crops_of("DINOv2", "ViT-g/14") == [((0.32, 1.0), 2), ((0.05, 0.32), 8)]


def test_encoders_of_methods_without_a_class_token_have_the_mean_of_their_patches() -> None:
    """What the authors of I-JEPA look at; their ViTs have no class token at all."""
    for row in ROWS:
        args = row.run().encoder_args
        mean = row.method in ("I-JEPA", "data2vec")
        assert (args.get("global_pool") == "avg") == mean, row
        assert (args.get("class_token") is False) == (row.method == "I-JEPA"), row


def test_seer_is_trained_as_published() -> None:
    """Reference, section 21: LARC, recomputed blocks, and the larger one in shares."""
    for backbone, strategy in (("RG-256GF", "ddp"), ("RG-10B", "fsdp")):
        (row,) = (row for row in ROWS if (row.method, row.backbone) == ("SEER", backbone))
        run = row.run()
        assert (run.optimiser.name, run.recompute, run.strategy) == ("larc", True, strategy)
        method = on_meta(replace(run, encoder="regnety_002"))
        widths = [layer.out_features for layer in method.get_submodule("projector") if isinstance(
            layer, torch.nn.Linear)]  # fmt: skip
        assert widths == [8192, 8192, 256]
        assert len(method.get_submodule("projector")) == 5  # without norms
    for method in ("SwAV", "DeepCluster-v2"):
        assert {row.run().optimiser.name for row in ROWS if row.method == method} == {"larc"}


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_encoders_have_the_published_size(backbone: str) -> None:
    name, arguments = BACKBONES[backbone]
    with torch.device("meta"):
        encoder = build_encoder(name, 224, **arguments)
    assert parameter_count(encoder) / 1e6 == pytest.approx(PUBLISHED[backbone], rel=0.033)
    assert all(p.is_meta for p in encoder.parameters())


def test_the_largest_has_nine_billion_parameters_and_a_vector_of_28280() -> None:
    with torch.device("meta"):
        encoder = build_encoder("regnety_10b", 160)
    assert encoder.dim == 28_280
    assert 9e9 < parameter_count(encoder) < 10e9
    assert not encoder.exportable
    with pytest.raises(ValueError, match="there are no weights of regnety_10b"):
        build_encoder("regnety_10b", 160, init="pretrained")


@pytest.mark.parametrize("row", one_of_each_method(), ids=lambda row: row.method)
def test_every_method_is_built_on_no_device(row: Row) -> None:
    method = on_meta(row.run())
    assert type(method) is catalog.find(row.run().method)
    assert all(t.is_meta for t in method.state_dict().values())
    assert method.plan().main
