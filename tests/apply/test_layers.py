"""Every layer seen once, pooled as said, and probed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from erg.apply.embed import open_for, vectors_of
from erg.apply.layers import OUTPUT, layer_vectors, layers, pooled, stages
from erg.encoders import Encoder, build_encoder
from erg.evaluate.linear import linear_accuracy

NETWORKS = {
    "conv": (16, {"width": 4, "stages": 3, "blocks": [1]}),
    "mlp": (7, {"width": 6, "depth": 2, "dim": 5}),
    "resnet18": (32, {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
    "vit_tiny_patch16_224": (32, {"depth": 3, "embed_dim": 48}),
}


def made(name: str) -> Encoder:
    torch.manual_seed(0)
    size, arguments = NETWORKS[name]
    return build_encoder(name, size, **arguments).eval()


def test_stages_are_those_of_the_architecture() -> None:
    conv = made("conv")
    found = stages(conv)
    assert list(found) == ["stage 1", "stage 2", "stage 3"]
    assert isinstance(conv.network, nn.Sequential)
    assert found["stage 3"] is conv.network[-1]
    assert len(stages(made("mlp"))) == 3
    assert list(stages(made("resnet18"))) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert list(stages(made("vit_tiny_patch16_224"))) == ["blocks.0", "blocks.1", "blocks.2"]
    assert stages(build_encoder("pixels", 16)) == {}


def test_maps_are_averaged_to_the_largest_square_that_fits() -> None:
    conv = made("conv")
    maps = torch.randn(2, 4, 8, 8)
    got = pooled(maps, conv, values=4 * 16 + 3)  # 4 x 4 places of 4 channels
    wanted = [
        maps[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
        for b in range(2) for c in range(4) for i in range(4) for j in range(4)
    ]  # fmt: skip
    torch.testing.assert_close(got.flatten(), torch.stack(wanted))
    assert torch.equal(pooled(maps, conv, values=10_000), maps.flatten(1))
    torch.testing.assert_close(pooled(maps, conv, values=1), maps.mean((2, 3)))
    last = torch.randn(2, 8, 8, 4)  # channels last
    torch.testing.assert_close(
        pooled(last, conv, values=64), pooled(last.permute(0, 3, 1, 2), conv, values=64)
    )
    vector = torch.randn(2, 9)
    assert torch.equal(pooled(vector, conv, values=1), vector)


def test_tokens_are_laid_out_on_their_grid_without_their_prefix() -> None:
    vit = made("vit_tiny_patch16_224")
    assert vit.grid == (2, 2)
    tokens = torch.randn(3, 5, 48)  # a class token and 2 x 2 patches
    torch.testing.assert_close(pooled(tokens, vit, values=48), tokens[:, 1:].mean(1))
    whole = pooled(tokens, vit, values=48 * 4)
    assert torch.equal(whole.reshape(3, 48, 4), tokens[:, 1:].transpose(1, 2))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_what_the_network_computes_there(name: str) -> None:
    encoder = made(name)
    if name == "mlp":
        data: object = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    else:
        data = "synthetic:6"
    opened = open_for(encoder, data)
    found = layer_vectors(encoder, opened, opened.rows)
    assert list(found) == [*stages(encoder), OUTPUT]
    wanted = vectors_of(encoder, encoder, encoder, opened, opened.rows)
    np.testing.assert_array_equal(found[OUTPUT], wanted)
    assert not any(module._forward_hooks for module in encoder.modules()), "nothing is left behind"
    if name == "conv":
        network = encoder.network
        assert isinstance(network, nn.Sequential)
        for i, end in enumerate((3, 6, 10)):  # conv, norm, relu; a residual in the last
            part = network[:end]
            alone = vectors_of(
                lambda x, p=part: p(x).flatten(1), part, encoder, opened, opened.rows
            )
            np.testing.assert_allclose(found[f"stage {i + 1}"], alone, atol=1e-6)


def test_probes_are_fitted_layer_by_layer() -> None:
    encoder = made("conv")
    opened, other = (open_for(encoder, f"synthetic:{n}", label="shape") for n in (120, 60))
    found = layers(encoder, opened, opened.rows, other, other.rows, values=64)
    assert [layer.name for layer in found] == ["stage 1", "stage 2", "stage 3", OUTPUT]
    fit, ask = (
        layer_vectors(encoder, each, each.rows, values=64)["stage 2"] for each in (opened, other)
    )
    right = linear_accuracy(fit, opened.labels[opened.rows], ask, other.labels[other.rows])
    assert np.array_equal(found[1].right, right)
    assert found[1].values == fit.shape[1] <= 64
    assert found[1].accuracy.value == pytest.approx(right.mean())
    with pytest.raises(ValueError, match="same classes"):
        layers(encoder, opened, opened.rows, open_for(encoder, "synthetic:9"), np.arange(9))


def test_classes_are_compared_by_name() -> None:
    """A set without the first class numbers the others from 0; a class that is new is wrong."""
    encoder = made("conv")
    opened = open_for(encoder, "synthetic:120", label="shape")
    assert opened.labels is not None
    first, *rest = opened.classes
    few = opened.rows[opened.labels[opened.rows] > 0]
    other = replace(opened, labels=opened.labels - (opened.labels >= 0), classes=tuple(rest))
    wanted = layers(encoder, opened, few, opened, few, values=64)
    found = layers(encoder, opened, few, other, few, values=64)
    for a, b in zip(wanted, found, strict=True):
        assert np.array_equal(a.right, b.right)
    assert found[-1].right.any()
    fitted_on = layers(encoder, other, few, opened, opened.rows, values=64)
    new = opened.labels[opened.rows] == opened.classes.index(first)
    assert new.any()
    assert not any(layer.right[new].any() for layer in fitted_on)
    apart = replace(opened, classes=tuple(f"no {name}" for name in opened.classes))
    with pytest.raises(ValueError, match="some of the same classes"):
        layers(encoder, opened, few, apart, few)


def test_deeper_layers_of_an_untrained_network_know_less_of_digits(shared_data: Path) -> None:
    """Random layers lose what tells digits apart: the output least of all tells them."""
    encoder = build_encoder("conv", 28, width=8, stages=4).eval()
    path = str(shared_data / "mnist_test.parquet")
    opened = open_for(encoder, path, label="label")
    found = layers(encoder, opened, opened.rows[:1000], opened, opened.rows[1000:2000], values=512)
    first, last = found[0].accuracy, found[-1].accuracy
    assert first.low > last.high
    assert first.value > 0.85
