"""theta' <- m theta' + (1 - m) theta, and nothing else."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from erg.parts.teacher import Teacher


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def move(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))


def test_starts_as_a_copy_that_does_not_learn() -> None:
    net = student()
    teacher = Teacher(net)
    for mine, theirs in zip(teacher.network.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad
        assert theirs.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.996, 1.0])
def test_follows_by_the_formula(momentum: float) -> None:
    net = student()
    teacher = Teacher(net)
    for _ in range(3):
        before = [p.clone() for p in teacher.network.parameters()]
        move(net)
        teacher.follow(momentum)
        for old, new, fast in zip(
            before, teacher.network.parameters(), net.parameters(), strict=True
        ):
            wanted = momentum * old.double() + (1 - momentum) * fast.detach().double()
            assert torch.allclose(new.double(), wanted, atol=1e-6)
            if momentum in (0.0, 1.0):  # these two exactly
                assert torch.equal(new, fast if momentum == 0 else old)


def test_a_still_student_leaves_the_teacher_where_it_is() -> None:
    """After a step with learning rate 0."""
    net = student()
    teacher = Teacher(net)
    before = copy.deepcopy(teacher.state_dict())
    teacher.follow(0.9)
    assert all(torch.equal(t, before[name]) for name, t in teacher.state_dict().items())


def test_buffers_stay_the_teachers_own() -> None:
    net: Any = student()
    teacher = Teacher(net).train()
    network: Any = teacher.network
    teacher(torch.randn(8, 3) + 5)
    own = network[1].running_mean.clone()
    net(torch.randn(8, 3) - 5)
    teacher.follow(0.0)
    assert torch.equal(network[1].running_mean, own)
    assert not torch.equal(net[1].running_mean, own)


def test_gives_no_gradient_and_uses_its_batch_in_training() -> None:
    net = student()
    teacher, x = Teacher(net).train(), torch.randn(8, 3, requires_grad=True)
    assert not teacher(x).requires_grad
    assert torch.equal(teacher(x), net.train()(x))
    assert not torch.equal(teacher.eval()(x), net(x))


def test_dropout_is_off_while_batch_norms_use_their_batch() -> None:
    net = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.BatchNorm1d(64))
    teacher, x = Teacher(net).train(), torch.randn(8, 3)
    network: Any = teacher.network
    assert teacher.training
    assert [layer.training for layer in network] == [False, False, True]
    still = nn.functional.batch_norm(network[0](x), None, None, training=True)
    assert torch.allclose(teacher(x), still, atol=1e-6)
    teacher.eval()
    assert not any(module.training for module in teacher.modules())


def test_the_student_is_not_saved_twice() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = student()
            self.teacher = Teacher(self.net)

    whole = Whole()
    assert len(whole.state_dict()) == 2 * len(whole.net.state_dict())
    assert {name.split(".")[0] for name in whole.state_dict()} == {"net", "teacher"}
    copied = copy.deepcopy(whole)
    move(copied.net)
    copied.teacher.follow(0.0)
    slows, fasts = copied.teacher.network.parameters(), copied.net.parameters()
    for slow, fast in zip(slows, fasts, strict=True):
        assert torch.equal(slow, fast)
    double = whole.double()
    double.teacher.follow(0.5)
    assert next(double.teacher.parameters()).dtype == torch.float64
