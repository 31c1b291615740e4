"""ClusterFit: clusters known beforehand, a new encoder beside the finished one, a loop."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.clusterfit import ClusterFit
from erg.views.plan import BYOL_FIRST, SIMCLR_SMALL, WHOLE
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def views(b: int = 5) -> Views:
    main = tuple(View(drawn(b, 3, 16, 16, seed=i)) for i in range(2))
    return Views(main, torch.arange(b))


def a_method(**arguments: Any) -> ClusterFit:
    torch.manual_seed(7)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    with torch.no_grad():  # as if it had been trained: batch norms have averages
        encoder.train()(drawn(20, 3, 16, 16).float())
    return ClusterFit(encoder, **{"clusters": 3, **arguments}).double()


def test_loss_is_the_loop_over_images() -> None:
    method, batch = a_method(), views()
    method.centroids.copy_(drawn(3, 16, seed=5))
    x, y = batch.main
    old = method.finished.eval()(y.data).tolist()
    scores = method.classifier(method.encoder(x.data)).tolist()
    energies: list[float] = []
    for f, s in zip(old, scores, strict=True):
        far = [sum((a - b) ** 2 for a, b in zip(f, c, strict=True)) for c in method.centroids]
        k = min(range(3), key=lambda j, far=far: float(far[j]))
        energies.append(math.log(sum(map(math.exp, s))) - s[k])
    assert method.energy(x, y).tolist() == pytest.approx(energies, rel=1e-9)
    assert method.loss(batch, 0.0).total.item() == pytest.approx(sum(energies) / 5, rel=1e-9)


def test_clusters_are_those_of_the_features_before_the_first_step() -> None:
    method = a_method()
    middles = 10 * drawn(3, 16, seed=3)
    mine = torch.arange(30) % 3
    features = middles[mine] + 0.1 * drawn(30, 16, seed=4)
    method.after_epoch(features)
    order = torch.cdist(middles, method.centroids).argmin(dim=1)
    assert sorted(order.tolist()) == [0, 1, 2]
    for k in range(3):
        mean = features[mine == k].mean(dim=0)
        assert torch.allclose(method.centroids[order[k]], mean, atol=1e-9)
    centroids = method.centroids.clone()
    method.after_epoch(drawn(30, 16, seed=9))  # after further epochs nothing changes
    assert torch.equal(method.centroids, centroids)


def test_the_new_encoder_starts_anew_and_the_finished_one_stays() -> None:
    method = a_method()
    given = {name: t.clone() for name, t in method.encoder.state_dict().items()}
    parameters = [id(p) for p in method.encoder.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    method.after_epoch(drawn(10, 16))
    assert torch.equal(torch.rand(1), expected), "the generator of the run moved"
    assert [id(p) for p in method.encoder.parameters()] == parameters
    for name, t in method.finished.state_dict().items():
        assert torch.equal(t, given[name]), name
    changed = [not torch.equal(t, given[n]) for n, t in method.encoder.state_dict().items()]
    assert sum(changed) >= 6
    again = a_method()
    again.after_epoch(drawn(10, 16))
    for name, t in method.encoder.state_dict().items():
        assert torch.equal(t, again.encoder.state_dict()[name]), name
    other = a_method(seed=1)
    other.after_epoch(drawn(10, 16))
    weight = next(iter(method.encoder.parameters()))
    assert not torch.equal(weight, next(iter(other.encoder.parameters())))


def test_the_finished_encoder_stays_in_evaluation_and_gets_no_gradient() -> None:
    method = a_method().train()
    assert method.encoder.training
    assert not any(module.training for module in method.finished.modules())
    before = {name: t.clone() for name, t in method.finished.state_dict().items()}
    method.loss(views(), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("finished"), name
    for name, t in method.finished.state_dict().items():
        assert torch.equal(t, before[name]), name


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k = 3 points \(got 2\)"):
        a_method().after_epoch(drawn(2, 16))


def test_plan_is_a_view_and_the_whole_image() -> None:
    assert a_method().plan().main == (SIMCLR_SMALL, WHOLE)
    large = ClusterFit(build_encoder("conv", 128, width=8), clusters=2)
    assert large.plan().main == (BYOL_FIRST, WHOLE)
