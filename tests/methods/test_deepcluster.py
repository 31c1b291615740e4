"""DeepCluster: loops, the closed form, clusters known beforehand, what the bank holds when."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import build_encoder
from erg.methods.deepcluster import DeepCluster
from erg.views.plan import SWAV_GLOBAL, SWAV_LOCAL
from erg.views.types import View, Views


def views(*local: int, index: list[int] | None = None, seed: int = 0) -> Views:
    index = index or [0, 1, 2, 3, 4]
    generator = torch.Generator().manual_seed(seed)
    crops = [
        View(torch.randn(len(index), 3, s, s, generator=generator, dtype=torch.float64))
        for s in (16, 16, *local)
    ]
    return Views(tuple(crops[:2]), torch.tensor(index), local=tuple(crops[2:]))


def a_method(**arguments: Any) -> DeepCluster:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 16, width=8, stages=2)
    small: dict[str, Any] = {"size": 9, "clusters": 3, "heads": 3, "hidden": 9, "dim": 5}
    return DeepCluster(encoder, **{**small, "small_crops": 2, **arguments}).double()


def on_sphere(**arguments: Any) -> DeepCluster:
    """Embeddings are the data."""
    identity = build_encoder("identity", 3)
    method = DeepCluster(identity, size=40, dim=3, hidden=2, small_crops=0, **arguments).double()
    method.projector = nn.Sequential()
    return method


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=-1)


def dots(a: Tensor, rows: Tensor) -> list[float]:
    return [sum(p * q for p, q in zip(a.tolist(), row, strict=True)) for row in rows.tolist()]


def told(z: Tensor, c: Tensor, cluster: int, temperature: float = 0.1) -> float:
    e = [d / temperature for d in dots(z, c)]
    return math.log(sum(map(math.exp, e))) - e[cluster]


def test_loss_is_the_loop_over_heads_and_crops() -> None:
    """Images 0, 2 and 4 are in the banks; 1 and 3 are put into clusters by their own crops."""
    method, batch = a_method(temperature=0.3).eval(), views(8, 8)
    method.centroids.copy_(unit(3, 3, 5, seed=1))
    for i in range(2):
        method.bank(i).rows[[0, 2, 4]] = unit(3, 5, seed=2 + i)
    z = method.embed(*batch.main, *batch.local).detach().chunk(4)
    total = 0.0
    for head in range(3):
        c = method.centroids[head]
        for i in range(5):
            m = method.bank(head % 2).rows[i] if i % 2 == 0 else z[head % 2][i]
            cluster = max(range(3), key=lambda k, m=m, c=c: dots(m, c)[k])
            total += sum(told(each[i], c, cluster, 0.3) for each in z) / (3 * 4 * 5)
    assert method.loss(batch, 0.5).total.item() == pytest.approx(total, rel=1e-10)


def test_loss_of_an_image_at_its_centroid_has_a_closed_form() -> None:
    """log(1 + sum_j exp((c_j . z - 1) / T)) over the other centroids (section 8, invariants)."""
    method = on_sphere(clusters=4, heads=1)
    c = unit(4, 3)
    method.centroids.copy_(c[None])
    batch = Views((View(c[:1]), View(c[:1])), torch.tensor([0]))
    others = sum(math.exp((d - 1) / 0.1) for d in dots(c[0], c[1:]))
    assert method.loss(batch, 0.0).total.item() == pytest.approx(math.log1p(others), rel=1e-9)


def test_k_means_finds_clusters_known_beforehand() -> None:
    method = on_sphere(clusters=2, heads=2)
    middles = torch.tensor([[1.0, 0, 0], [0, 0, -1.0]], dtype=torch.float64)
    mine = torch.arange(30) % 2
    z = nn.functional.normalize(middles[mine] + 0.1 * unit(30, 3), dim=1)
    for i in range(2):
        method.bank(i).rows[:30] = z
    method.after_epoch(torch.zeros(30, 3, dtype=torch.float64))
    for c in method.centroids:
        assert torch.allclose(c.norm(dim=1), torch.ones(2, dtype=torch.float64))
        found = (z @ c.T).argmax(dim=1)
        assert found.eq(mine).all() or found.eq(1 - mine).all()
        for k in range(2):
            mean = z[found == k].mean(dim=0)
            assert torch.allclose(c[k], mean / mean.norm(), atol=1e-12)


def test_k_means_converges_to_the_directions_of_its_clusters() -> None:
    method, z = on_sphere(clusters=5, iterations=60), unit(40, 3)
    c = method.on_the_sphere(z, torch.Generator().manual_seed(1))
    found = (z @ c.T).argmax(dim=1)
    for k in range(5):
        mean = z[found == k].mean(dim=0)
        assert torch.allclose(c[k], mean / mean.norm(), atol=1e-9)


def test_heads_take_turns_with_the_banks() -> None:
    method = a_method(clusters=2)
    for i in range(2):
        method.bank(i).rows.copy_(unit(9, 5, seed=i))
    seen: list[Tensor] = []
    method.on_the_sphere = lambda z, _: seen.append(z) or z[:2]  # type: ignore[method-assign]
    method.after_epoch(torch.zeros(9, 16, dtype=torch.float64))
    assert len(seen) == 3
    for head, z in enumerate(seen):
        assert torch.equal(z, method.bank(head % 2).rows)


def test_bank_holds_the_two_large_crops_of_the_images_seen() -> None:
    method, batch = a_method().train(), views(8, index=[7, 0, 3])
    z = method.embed(*batch.main, *batch.local).detach().chunk(3)
    method.loss(batch, 0.0).total.backward()
    for i in range(2):
        rows = method.bank(i).rows
        assert torch.allclose(rows[[7, 0, 3]], z[i], atol=1e-12)
        assert not rows[[1, 2, 4, 5, 6, 8]].any()
    before = method.bank(0).rows.clone()
    method.eval().loss(views(8, seed=5), 0.0)
    assert torch.equal(method.bank(0).rows, before)


def test_clusters_stay_those_of_the_bank_until_the_epoch_ends() -> None:
    method = a_method().train()
    method.loss(views(8, 8), 0.0)
    method.loss(views(8, 8, index=[5, 6, 7, 8], seed=1), 0.0)
    method.after_epoch(torch.zeros(9, 16, dtype=torch.float64))
    centroids = method.centroids.clone()
    remembered = method.bank(0).rows.clone()
    found = method.remembered(0, torch.arange(9), torch.zeros(9, 5, dtype=torch.float64))
    assert torch.equal(found, remembered)
    method.loss(views(8, 8, seed=2), 0.0)
    assert torch.equal(method.centroids, centroids)
    assert not torch.equal(method.bank(0).rows, remembered)


def test_first_centroids_are_those_of_images_seen_whole() -> None:
    method = a_method(size=40).train()
    before = {name: t.clone() for name, t in method.projector.state_dict().items()}
    features = torch.randn(12, 16, dtype=torch.float64)
    method.after_epoch(features)
    for name, t in method.projector.state_dict().items():
        assert torch.equal(t, before[name]), name
    z = nn.functional.normalize(method.projector(features), dim=1)  # batch norms in training
    for c in method.centroids:
        found = (z @ c.T).argmax(dim=1)
        assert sorted(set(found.tolist())) == [0, 1, 2]
        for k in range(3):
            mean = z[found == k].mean(dim=0)
            assert torch.allclose(c[k], mean / mean.norm(), atol=1e-9)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 clusters need as many images \(got 2\)"):
        a_method().after_epoch(torch.randn(2, 16, dtype=torch.float64))


def test_centroids_are_no_parameters_and_the_rest_learns() -> None:
    method = a_method()
    assert "centroids" not in dict(method.named_parameters())
    method.loss(views(8, 8), 0.0).total.backward()
    for name, p in method.named_parameters():
        assert p.grad is not None, name


def test_energy_is_the_mean_over_heads() -> None:
    method = a_method().eval()
    x, y = views().main
    z, m = method.embed(x).detach(), method.embed(y).detach()
    for i, found in enumerate(method.energy(x, y).tolist()):
        wanted = 0.0
        for c in method.centroids:
            cluster = max(range(3), key=lambda k, c=c, i=i: dots(m[i], c)[k])
            wanted += told(z[i], c, cluster) / 3
        assert found == pytest.approx(wanted, rel=1e-9)


def test_plan_has_two_large_and_some_small_crops() -> None:
    plan = a_method(small_crops=3).plan()
    assert (len(plan.main), [v.pixels(16) for v in plan.local]) == (2, [8, 8, 8])
    large = DeepCluster(build_encoder("conv", 224, width=8), hidden=4, dim=4).plan()
    assert large.main == (SWAV_GLOBAL,) * 2
    assert large.local == (SWAV_LOCAL,) * 6
