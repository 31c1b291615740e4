"""Colourisation: weights and errors by loops, and what the encoder sees."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from erg.encoders import build_encoder
from erg.methods.colourisation import Colourisation
from erg.parts.colours import lab
from erg.views.plan import LIGHT
from erg.views.types import View, Views


def a_method(**arguments: Any) -> Colourisation:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    return Colourisation(encoder, **{"width": 8, **arguments}).double().eval()


def pictures(n: int = 3, seed: int = 0) -> View:
    encoder = a_method().encoder
    unit = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).double()
    mean, std = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    return View((unit - mean) / std, mean=encoder.mean, std=encoder.std)


def batch(y: View) -> Views:
    return Views((y,), torch.arange(len(y)), pairing="itself")


def test_energy_weighs_rare_colours_more() -> None:
    method, x, y = a_method(mixing=0.3), pictures(), pictures(seed=1)
    q = len(method.head.bins)
    p = torch.rand(q, generator=torch.Generator().manual_seed(2)).double()
    method.head.frequencies.copy_(p / p.sum())
    p = method.head.frequencies.tolist()
    raw = [1 / (0.7 * v + 0.3 / q) for v in p]
    mean = sum(v * w for v, w in zip(p, raw, strict=True))
    scores = method.head.decoder(method.encode(x.data))
    target = method.head.target(y.data).reshape(3, 4, 4, q)
    wanted = []
    for b in range(3):
        errors = []
        for i in range(4):
            for j in range(4):
                row, t = scores[b, :, i, j].tolist(), target[b, i, j].tolist()
                log_sum = math.log(sum(math.exp(v) for v in row))
                weight = raw[t.index(max(t))] / mean
                errors.append(weight * sum(s * (log_sum - v) for s, v in zip(t, row, strict=True)))
        wanted.append(sum(errors) / 16)
    assert method.energy(x, y).tolist() == pytest.approx(wanted)
    total = method.loss(batch(x), 0.0)
    assert total.push == {}
    assert total.total.item() == pytest.approx(method.energy(x, x).mean().item())


def test_the_encoder_sees_no_colour() -> None:
    method, y = a_method(), pictures()
    lightness = lab(y.unit())[:, :1] / 100
    grey = (lightness - y.unit()) / torch.tensor(y.std).view(1, 3, 1, 1) + y.data
    assert torch.allclose(method.encode(y.data), method.encoder(grey))


def test_frequencies_follow_the_colours_of_training_only() -> None:
    method, y = a_method(momentum=0.9), pictures()
    before = method.head.frequencies.clone()
    method.loss(batch(y), 0.0)
    assert torch.equal(method.head.frequencies, before)
    method.train().loss(batch(y), 0.0)
    seen = method.head.target(y.data).mean(0)
    assert torch.allclose(method.head.frequencies, 0.9 * before + 0.1 * seen)
    assert method.head.frequencies.sum().item() == pytest.approx(1)
    assert float((method.head.frequencies * method.head.rarity()).sum()) == pytest.approx(1)


def test_plan_and_what_does_not_fit() -> None:
    plan = a_method(crop=0.7).plan()
    assert plan.main == (replace(LIGHT, crop=(0.7, 1.0)),)
    assert plan.pairs == "itself"
    for encoder in (build_encoder("conv", 18, width=8, stages=2), build_encoder("mlp", 4)):
        with pytest.raises(ValueError, match="multiple of 4"):
            Colourisation(encoder)
