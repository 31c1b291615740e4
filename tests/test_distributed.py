"""With one process everything is itself. What two processes do stands in test_two_processes."""

import torch

from erg import distributed


def test_alone() -> None:
    assert not distributed.active()
    assert distributed.world() == 1
    assert distributed.rank() == 0
    assert distributed.counts(5) == [5]
    assert distributed.agree(True)
    assert not distributed.agree(False)


def test_sum_and_gather_are_the_identity_without_a_copy() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert distributed.sum(x) is x
    assert distributed.gather(x) is x


def test_alone_what_the_first_holds_is_ones_own() -> None:
    x = torch.rand(3)
    assert distributed.of_first(x) is x


def test_mean_is_the_mean_over_rows() -> None:
    x = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).requires_grad_()
    mean = distributed.mean(x)
    assert mean.tolist() == [4.5, 5.5, 6.5]
    (mean * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.25, 0.5, 0.75]] * 4


def test_mean_of_scalars_per_item_is_a_scalar() -> None:
    assert distributed.mean(torch.tensor([1.0, 2.0, 6.0])).shape == ()
    assert float(distributed.mean(torch.tensor([1.0, 2.0, 6.0]))) == 3
