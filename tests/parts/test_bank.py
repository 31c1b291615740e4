"""A queue is a list from which the oldest drops out."""

import copy

import pytest
import torch
from torch import Tensor

from erg.parts.bank import Queue


def rows(start: int, n: int) -> Tensor:
    return torch.arange(start, start + n, dtype=torch.float32)[:, None].expand(-1, 2).clone()


def oldest_first(queue: Queue) -> list[float]:
    """The rows in the order in which they were pushed."""
    start = int(queue.pushed) % len(queue.rows) if queue.full else 0
    return queue.rows.roll(-start, dims=0)[:, 0].tolist()


@pytest.mark.parametrize("sizes", [[3] * 6, [1] * 12, [5, 5, 5], [2, 7, 1, 4], [5], [4, 1, 13]])
def test_holds_the_last_rows_in_order(sizes: list[int]) -> None:
    queue, kept, count = Queue(5, 2), [], 0
    for n in sizes:
        queue.push(rows(count, n))
        kept = [*kept, *map(float, range(count, count + n))][-5:]
        count += n
        assert int(queue.pushed) == count
        assert queue.full == (count >= 5)
        if queue.full:
            assert oldest_first(queue) == kept
        else:
            assert queue.rows[:count, 0].tolist() == kept
    assert torch.equal(queue.rows[:, 0], queue.rows[:, 1])


def test_is_full_with_its_last_row_and_not_before() -> None:
    queue = Queue(4, 2)
    assert not queue.full
    queue.push(torch.zeros(3, 2))
    assert not queue.full
    queue.push(torch.zeros(1, 2))  # a row of zeros is a row
    assert queue.full


def test_an_empty_push_changes_nothing() -> None:
    queue = Queue(4, 2)
    queue.push(rows(1, 3))
    before = copy.deepcopy(queue.state_dict())
    queue.push(torch.zeros(0, 2))
    assert all(torch.equal(t, before[name]) for name, t in queue.state_dict().items())


def test_holds_copies_without_gradient_in_its_own_precision() -> None:
    queue, z = Queue(2, 2), torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    queue.push(z)
    assert queue.rows.dtype == torch.float32
    assert not queue.rows.requires_grad
    z.data.zero_()
    assert torch.equal(queue.rows, torch.ones(2, 2))


def test_all_its_state_is_saved() -> None:
    queue, other = Queue(3, 2), Queue(3, 2)
    queue.push(rows(1, 4))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(rows(5, 1))
    assert oldest_first(queue) == oldest_first(other) == [3, 4, 5]
