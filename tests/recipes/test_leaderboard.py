"""The leaderboard: rows that say what was published, encoders of the published size."""

import json
from dataclasses import replace

import pytest
import torch

from erg import catalog
from erg.encoders import build_encoder, parameter_count
from erg.recipes.leaderboard import BACKBONES, ROWS, Row
from erg.recipes.needs import on_meta
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
        ("SwAV", "R50x5", 4096, 400 * 1_281_167 / 4096),
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
