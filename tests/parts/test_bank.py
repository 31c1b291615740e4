"""A queue is a list from which the oldest drops out; a memory has a place for every image."""

import copy

import pytest
import torch
from torch import Tensor

from erg.parts.bank import Memory, Queue
from tests.train.test_loop import Unseen


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


def test_its_own_count_is_asked_of_no_device() -> None:
    queue = Queue(4, 2)
    with Unseen():
        for full in (False, False, True, True):
            assert queue.full == full
            queue.push(rows(1, 2))
    queue.load_state_dict(queue.state_dict())
    with pytest.raises(AssertionError, match="makes the host wait"), Unseen():
        assert queue.full
    assert queue.full
    with Unseen():  # asked once
        queue.push(rows(1, 2))
        assert queue.full
    queue.load_state_dict(Queue(4, 2).state_dict())
    with Unseen():  # a push alone need not know
        queue.push(rows(1, 2))
    assert not queue.full


@pytest.mark.parametrize("how", ["loaded", "put back", "assigned", "moved", "alias"])
def test_what_others_write_to_its_number_is_seen(how: str) -> None:
    queue = Queue(4, 2)
    queue.push(rows(1, 3))
    state = copy.deepcopy(queue.state_dict())
    held = {name: each.detach().clone() for name, each in queue.named_buffers()}
    queue.push(rows(1, 1))
    assert queue.full
    if how == "put back":  # as after a step that is left out
        for name, each in queue.named_buffers():
            each.copy_(held[name])
    elif how == "moved":
        queue.double().load_state_dict(state)
        queue.float()
    elif how == "alias":
        for name, each in queue.state_dict().items():
            each.copy_(state[name])
    else:
        queue.load_state_dict(state, assign=how == "assigned")
    assert not queue.full
    queue.push(rows(1, 1))
    assert queue.full
    assert int(queue.pushed) == 4


def test_a_copy_counts_for_itself() -> None:
    """Its number may be another than what was counted, and the versions of its tensors are."""
    queue = Queue(4, 2)
    full, empty = copy.deepcopy(queue), copy.deepcopy(queue.state_dict())
    full.push(rows(1, 4))
    queue.load_state_dict(full.state_dict())
    copied = copy.deepcopy(queue)
    assert copied.full
    copied.load_state_dict(empty)
    assert (copied.full, queue.full, full.full) == (False, True, True)
    assert "_known" not in queue.state_dict()


def test_one_of_inference_mode_is_asked_every_time() -> None:
    """Its tensors do not say when they are written to."""
    with torch.inference_mode():
        queue = Queue(2, 2)
        assert not queue.full
        queue.push(rows(1, 2))
        assert queue.full
        queue.pushed.zero_()
        assert not queue.full


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


def test_a_queue_may_start_with_random_directions() -> None:
    queue = Queue(50, 4, random=True)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(50), atol=1e-6)
    assert float(queue.rows.mean().abs()) < 0.2
    assert not queue.full
    queue.push(rows(1, 3)[:, :1].expand(-1, 4))
    assert queue.rows[:3, 0].tolist() == [1, 2, 3]
    assert torch.allclose(queue.rows[3:].norm(dim=1), torch.ones(47), atol=1e-6)


def test_a_memory_moves_the_rows_named_and_no_others() -> None:
    torch.manual_seed(0)
    memory = Memory(6, 3).double()
    start = memory.rows.clone()
    assert torch.allclose(start.norm(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-6)
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    memory.update(torch.tensor([4, 1]), z, 0.7)
    for i, row in ((4, z[0]), (1, z[1])):
        wanted = [0.7 * a + 0.3 * b for a, b in zip(start[i].tolist(), row.tolist(), strict=True)]
        norm = sum(w * w for w in wanted) ** 0.5
        assert memory.rows[i].tolist() == pytest.approx([w / norm for w in wanted], rel=1e-12)
    assert torch.equal(memory.rows[[0, 2, 3, 5]], start[[0, 2, 3, 5]])
    assert torch.equal(memory.of(torch.tensor([1, 0])), memory.rows[[1, 0]])
    assert not memory.rows.requires_grad
    assert memory.rows.dtype == torch.float64


def test_a_memory_is_written_in_place() -> None:
    """It may be as large as a data set, of which a step changes a few rows."""
    memory, z = Memory(4, 3), torch.ones(1, 3, requires_grad=True)
    rows, before = memory.rows, memory.rows.clone()
    memory.update(torch.tensor([2]), z, 0.5)
    assert memory.rows is rows
    assert not torch.equal(rows[2], before[2])
    other = Memory(4, 3)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.rows, memory.rows)


def test_a_memory_refuses_images_it_has_no_place_for() -> None:
    memory = Memory(4, 3)
    assert memory.of(torch.tensor([], dtype=torch.int64)).shape == (0, 3)
    with pytest.raises(ValueError, match="image 4 has no place in a memory of 4 rows"):
        memory.of(torch.tensor([0, 4]))
