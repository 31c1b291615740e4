"""Blocks computed again: the same gradients, averages moved once, insides not kept."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.encoders import Encoder, build_encoder
from erg.parts.recompute import again
from erg.views.types import Mask

SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 2}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"layers": (1, 2, 1, 1), "channels": (8, 8, 8, 8)}),
    "small stem": ("resnet18", {"layers": (1,) * 4, "channels": (8,) * 4, "small_stem": True}),
    "regnet": ("regnety_002", {}),
    "vit": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "drop_path_rate": 0.5},
    ),
    "vit, batch norms": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_batch_norm": True},
    ),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 1, "embed_dim": 16, "num_heads": 2}),
    "wide": ("resnet", {"depth": 26, "selective": True}),
    "sequence": ("sequence", {"vocabulary": 9, "width": 8, "depth": 2, "heads": 2}),
}


def a_pair(case: str) -> tuple[Encoder, Encoder]:
    """The same weights, remembering and computing again."""
    name, arguments = ENCODERS[case]
    torch.manual_seed(0)
    plain = build_encoder(name, 32, **arguments).double()
    frugal = copy.deepcopy(plain)
    frugal.recompute()
    assert frugal.state_dict().keys() == plain.state_dict().keys()
    return plain.train(), frugal.train()


def data(case: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if case == "sequence":
        return torch.randint(0, 9, (4, 32), generator=generator)
    return torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)


def learn(encoder: Encoder, case: str) -> None:
    """Two views forward, then both backward, as in a step."""
    torch.manual_seed(3)  # of dropped paths
    x, y = encoder(data(case, 1)), encoder(data(case, 2))
    (x * y + x).square().sum().backward()


@pytest.mark.parametrize("case", ENCODERS)
def test_gradients_and_running_averages_are_the_same(case: str) -> None:
    plain, frugal = a_pair(case)
    for encoder in (plain, frugal):
        learn(encoder, case)
    for (name, p), q in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-12, msg=name)
    theirs = dict(frugal.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(theirs[name], buffer), name
    counts = [b for name, b in theirs.items() if name.endswith("num_batches_tracked")]
    assert all(count == 2 for count in counts)
    assert not again()


def kept(encoder: Encoder, case: str) -> int:
    """Values remembered for the backward pass, weights left out."""
    found: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}

    def keep(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in weights:
            found[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        held = encoder(data(case))
    assert held.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("case", ENCODERS)
def test_the_inside_of_blocks_is_not_kept_and_computed_twice(case: str) -> None:
    plain, frugal = a_pair(case)
    assert kept(frugal, case) < kept(plain, case)
    block = frugal.units()[-1]
    inner = next(m for m in block.modules() if not list(m.children()))
    calls: list[bool] = []
    inner.register_forward_hook(lambda *_: calls.append(again()))
    frugal(data(case)).sum().backward()
    assert calls == [False, True]
    calls.clear()
    with torch.no_grad():
        frugal(data(case))
    assert calls == [False]


def test_hidden_patches_too() -> None:
    """Where blocks are called one by one."""
    plain, frugal = a_pair("vit")
    hidden = torch.zeros(4, 1, 16, dtype=torch.bool)
    hidden[:, :, ::3] = True
    mask = Mask(hidden, (4, 4))
    for encoder in (plain, frugal):
        torch.manual_seed(0)
        encoder.tokens(data("vit"), mask).square().sum().backward()
    for p, q in zip(plain.parameters(), frugal.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-10, atol=1e-12)


def test_a_copy_computes_with_its_own_weights() -> None:
    """As a teacher does."""
    _, frugal = a_pair("resnet")
    taught = copy.deepcopy(frugal)
    with torch.no_grad():
        for p in frugal.parameters():
            p.zero_()
    assert frugal(data("resnet")).abs().max() == 0
    assert taught(data("resnet")).abs().max() > 0
    assert all(type(a) is type(b) for a, b in zip(taught.units(), frugal.units(), strict=True))


def test_what_a_block_is_stays() -> None:
    plain, frugal = a_pair("vit")
    for a, b in zip(plain.units(), frugal.units(), strict=True):
        assert isinstance(b, type(a))
        assert type(b).__name__ == type(a).__name__
        assert type(b) is not type(a)
    assert not any(isinstance(m, type(frugal.units()[0])) for m in plain.modules())


@pytest.mark.parametrize("name", ["conv", "pixels", "mlp"])
def test_what_has_no_blocks_is_refused(name: str) -> None:
    encoder = build_encoder(name, 32)
    assert isinstance(encoder, nn.Module)
    with pytest.raises(ValueError, match=f"{name} has no blocks to compute again"):
        encoder.recompute()
