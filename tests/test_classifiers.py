"""Classifiers: written and read with the same bits, by timm too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from erg.classifiers import Classifier, first_layers, load_classifier, save_classifier
from erg.encoders import build_encoder
from erg.parts.heads import hidden_layers, mlp

SMALL = {"width": 8, "stages": 3}

NETWORKS = {
    "conv": (16, SMALL),
    "resnet18": (32, {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
    "vit_tiny_patch16_224": (32, {"depth": 1, "embed_dim": 48}),
}

WITH_TIMM = """
import sys, numpy, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert "erg" not in sys.modules
assert model.pretrained_cfg["label_names"] == ["cat", "dog", "owl"], model.pretrained_cfg
numpy.save(sys.argv[3], model(torch.from_numpy(numpy.load(sys.argv[2]))).detach().numpy())
"""


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_saved_comes_back_and_timm_loads_it(name: str, tmp_path: Path) -> None:
    size, arguments = NETWORKS[name]
    torch.manual_seed(0)
    model = Classifier(build_encoder(name, size, **arguments), ("cat", "dog", "owl"))
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    x = torch.randn(4, 3, size, size)
    model.train()(x)  # moves the running averages away from their start
    model.eval()
    save_classifier(model, tmp_path / "c")
    again = load_classifier(tmp_path / "c")
    assert again.classes == model.classes
    assert torch.equal(again(x), model(x))
    if name == "conv":
        return
    np.save(tmp_path / "x.npy", x.numpy())
    done = subprocess.run(
        [sys.executable, "-c", WITH_TIMM, str(tmp_path / "c"), str(tmp_path / "x.npy"),
         str(tmp_path / "y.npy")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), model(x).detach().numpy())


@pytest.mark.parametrize("name", ["conv", "resnet18"])
@pytest.mark.parametrize(("depth", "norm", "bias"), [(3, True, False), (2, False, True)])
def test_first_layers_of_a_projector_may_stand_between(
    name: str, depth: int, norm: bool, bias: bool, tmp_path: Path
) -> None:
    size, arguments = NETWORKS[name]
    torch.manual_seed(0)
    encoder = build_encoder(name, size, **arguments)
    whole = mlp(encoder.dim, *range(7, 7 + depth - 1), 5, norm=norm, hidden_bias=bias)
    count = depth - 1
    model = Classifier(encoder, ("cat", "dog"), first_layers(whole, count))
    assert model.head.in_features == 7 + depth - 2
    x = torch.randn(4, 3, size, size)
    model.train()(x)
    model.eval()
    save_classifier(model, tmp_path)
    again = load_classifier(tmp_path)
    assert torch.equal(again(x), model(x))
    assert model.projector is not None
    assert torch.equal(model(x), model.head(model.projector(encoder(x))))
    for layer, first in zip(model.projector, whole, strict=False):
        assert type(layer) is type(first)
        assert layer is not first
    assert torch.equal(model.projector[0].weight, whole[0].weight)
    assert len(model.projector) == count * (3 if norm else 2)
    assert "projector" in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("widths", [[], [8], [8, -1], "8", None])
def test_a_projector_that_cannot_be_built_is_one_line(widths: object, tmp_path: Path) -> None:
    encoder = build_encoder("conv", 16, **SMALL)
    save_classifier(Classifier(encoder, ("a", "b"), hidden_layers([encoder.dim, 4])), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["erg"]["projector"]["widths"] = widths
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds no classifier of erg"):
        load_classifier(tmp_path)


def test_layers_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ValueError, match="2 layers of the projector cannot be kept: it has 1"):
        first_layers(mlp(4, 5, 6), 2)
    with pytest.raises(ValueError, match="it has 0 before its last"):
        first_layers(None, 1)
    with pytest.raises(ValueError, match="not made of linear layers with BatchNorm and ReLU"):
        first_layers(mlp(4, 5, 6, activation=torch.nn.GELU), 1)


def test_what_is_no_classifier_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no classifier"):
        load_classifier(tmp_path)
    model = Classifier(build_encoder("conv", 16, **SMALL), ("a", "b"))
    save_classifier(model, tmp_path / "c")
    config = tmp_path / "c" / "config.json"
    config.write_text(config.read_text().replace('"b"', '"b", "c"'))
    with pytest.raises(ValueError, match=r"do not fit its config \(head"):
        load_classifier(tmp_path / "c")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 5},
        {"image_size": "x"},
        {"arguments": {"width": -1}},
        {"arguments": {"init": "pretrained"}},
        {"name": "resnet18", "arguments": {"init": "pretrained"}},
    ],
    ids=str,
)
def test_a_config_with_wrong_values_is_one_line_and_fetches_nothing(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_classifier(Classifier(build_encoder("conv", 16, **SMALL), ("a", "b")), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["erg"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    made: list[object] = []
    monkeypatch.setattr(timm, "create_model", lambda *_, **options: made.append(options))
    with pytest.raises(ValueError, match="holds no classifier of erg") as error:
        load_classifier(tmp_path)
    assert "\n" not in str(error.value)
    assert made == []


def test_images_are_normalised_as_the_encoder_wants_them() -> None:
    model = Classifier(build_encoder("conv", 16, **SMALL), ("a", "b")).eval()
    model.encoder.mean, model.encoder.std = (0.1, 0.2, 0.3), (0.6, 0.7, 0.8)
    unit = torch.rand(2, 3, 16, 16)
    each = [(unit[:, c] - (0.1, 0.2, 0.3)[c]) / (0.6, 0.7, 0.8)[c] for c in range(3)]
    torch.testing.assert_close(model.of_unit(unit), model(torch.stack(each, dim=1)))
