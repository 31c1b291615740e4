"""Batch normalisation, alone: torch's own. Across processes: see test_two_processes."""

from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from erg.encoders import build_encoder
from erg.parts.norm import BatchNorm, BatchNormAct, TokenBatchNorm, across_processes


@pytest.mark.parametrize(
    ("shape", "kind"), [((6, 3), nn.BatchNorm1d), ((4, 3, 5, 5), nn.BatchNorm2d)]
)
@pytest.mark.parametrize("how", [{}, {"momentum": None}, {"affine": False}, {"eps": 0.1}])
def test_alone_it_is_torchs(shape: tuple[int, ...], kind: type, how: dict) -> None:
    theirs, ours = kind(3, **how), BatchNorm(3, **how)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.empty(0)
    for step in range(3):
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(step)) * 2 + 1
        assert torch.equal(ours(x), theirs(x))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_normalises_by_hand() -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    y = BatchNorm(3).double()(x)
    for column, found in zip(x.T.tolist(), y.T.tolist(), strict=True):
        mean = sum(column) / 6
        var = sum((v - mean) ** 2 for v in column) / 6
        assert found == pytest.approx([(v - mean) / (var + 1e-5) ** 0.5 for v in column])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected .*got \[2, 3, 4, 5, 6\]"):
        BatchNorm(3)(torch.zeros(2, 3, 4, 5, 6))


def test_tokens_are_normalised_over_all_items_and_places() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(3, 4, 5, dtype=torch.float64) * 2 + 1, TokenBatchNorm(5).double()
    y = norm(x)
    for d in range(5):
        column = [float(x[b, n, d]) for b in range(3) for n in range(4)]
        mean = sum(column) / 12
        var = sum((v - mean) ** 2 for v in column) / 12
        wanted = [(v - mean) / (var + 1e-5) ** 0.5 for v in column]
        assert y[:, :, d].flatten().tolist() == pytest.approx(wanted)
        assert norm.running_mean[d].item() == pytest.approx(0.1 * mean)
    assert norm(x[0][None]).shape == (1, 4, 5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16,
                                          "window_size": 2}),
    ],
)  # fmt: skip
def test_batch_norms_stand_before_mlps_and_nowhere_else(name: str, arguments: dict) -> None:
    plain, changed = (
        build_encoder(name, 32, mlp_batch_norm=told, **arguments) for told in (False, True)
    )
    kinds = [{n: type(m) for n, m in encoder.named_modules()} for encoder in (plain, changed)]
    assert kinds[0].keys() == kinds[1].keys()
    differ = {n for n, kind in kinds[0].items() if kinds[1][n] is not kind}
    assert differ == {n for n in kinds[0] if n.endswith("norm2")}
    assert len(differ) == 2
    assert all(kinds[1][n] is TokenBatchNorm for n in differ)
    sizes = [sum(p.numel() for p in encoder.parameters()) for encoder in (plain, changed)]
    assert sizes[0] == sizes[1]
    assert torch.isfinite(changed(torch.randn(2, 3, 32, 32))).all()


def test_what_has_no_mlps_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet18 has no layer norms before MLPs"):
        build_encoder("resnet18", 32, mlp_batch_norm=True)


def a_net() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=0.01, momentum=0.3))
    plain = nn.BatchNorm1d(4, affine=False, track_running_stats=False)
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(first, inner, nn.Flatten(), nn.Linear(16, 4), plain)


def test_replaces_every_batch_norm_and_keeps_all_it_holds() -> None:
    before, net = a_net(), a_net()
    parameters = {name: id(p) for name, p in net.named_parameters()}
    across_processes(net)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3
    assert all(isinstance(m, BatchNorm) for m in norms)
    assert {name: id(p) for name, p in net.named_parameters()} == parameters
    assert (norms[1].eps, norms[1].momentum) == (0.01, 0.3)
    assert (norms[2].affine, norms[2].track_running_stats) == (False, False)
    assert net.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(net(x), before(x))
    assert torch.equal(net.eval()(x), before.eval()(x))
    for name, tensor in before.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)


def test_replaces_a_norm_that_stands_alone() -> None:
    """The module itself, not only what is inside it."""
    assert isinstance(across_processes(nn.BatchNorm2d(3)), BatchNorm)


def test_keeps_evaluation_mode_and_leaves_ours_alone() -> None:
    net = across_processes(a_net().eval())
    assert not any(m.training for m in net.modules())
    again = [m for m in net.modules() if isinstance(m, BatchNorm)]
    assert [m for m in across_processes(net).modules() if isinstance(m, BatchNorm)] == again


def test_three_dimensional_norms_still_run() -> None:
    """timm's nextvit normalises tokens [b c n]; what ran before must run after."""
    net = across_processes(nn.Sequential(nn.BatchNorm1d(3)))
    x = torch.randn(4, 3, 6)
    assert torch.equal(net(x), nn.BatchNorm1d(3)(x))


@pytest.mark.parametrize("apply_act", [True, False])
def test_timms_fused_norm_keeps_its_activation(apply_act: bool) -> None:
    def net() -> nn.Module:
        norm = BatchNormAct2d(4, apply_act=apply_act, act_layer=nn.SiLU, inplace=False)
        return nn.Sequential(norm)

    theirs: Any = net()
    ours: Any = across_processes(net())
    assert isinstance(ours[0], BatchNormAct)
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
