"""Several tasks on one trunk: by hand, against the methods of one task, and one after another."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from erg.cli import main
from erg.commands.options import method_arguments
from erg.encoders import build_encoder
from erg.method import Method
from erg.methods.colourisation import Colourisation
from erg.methods.jigsaw import Jigsaw
from erg.methods.multi_task import MultiTask
from erg.methods.relative_position import RelativePosition
from erg.methods.rotation import Rotation
from erg.views.make import make_views
from erg.views.pixels import Pixels
from erg.views.plan import LIGHT, Plan, Tiles
from erg.views.types import View, Views

ALL = {"rotation": 1.0, "position": 0.5, "jigsaw": 2.0, "colours": 0.25}
TASKS = list(ALL)
SMALL = {"hidden": 16, "width": 8, "channels": 8, "step": 40.0}


def pictures(n: int, seed: int = 0) -> Pixels:
    """Noise, by turns bright and red or dark and blue; every cell of a 3 x 3 grid has stripes of
    its own direction and width."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    angle = (y // 16 * 3 + x // 16) * math.pi / 9
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (0.9 + 0.25 * (x // 16)))
    tint = np.where(np.arange(n) % 2, 1, -1)[:, None, None, None] * np.array([60, 20, -20])
    made = 127 + 60 * wave[..., None] + tint + random.normal(0, 25, (n, 48, 48, 3))
    return Pixels.pack(list(made.clip(0, 255).astype(np.uint8)))


def a_method(**arguments: Any) -> MultiTask:
    torch.manual_seed(0)
    encoder = build_encoder("conv", 48, width=8, stages=2)
    return MultiTask(encoder, **{**SMALL, **arguments}).double()


def views(method: Method, n: int = 4, step: int = 0, plan: Plan | None = None) -> Views:
    encoder = method.encoder
    made = make_views(
        pictures(n, seed=step), plan or method.plan(), seed=0, epoch=step, step=step,
        index=np.arange(n), image_size=48, mean=encoder.mean, std=encoder.std,
    )  # fmt: skip
    return made.to(dtype=torch.float64)


def turns_of(view: View) -> Tensor:
    assert view.made is not None
    return view.made.turns


def order_of(view: View) -> Tensor:
    assert view.made is not None
    assert view.made.order is not None
    return view.made.order


def log_loss(scores: list[float], right: int) -> float:
    return math.log(sum(math.exp(s) for s in scores)) - scores[right]


def tiles_by_hand(method: MultiTask, image: Tensor, tiles: int) -> list[Tensor]:
    """A vector of every tile, one at a time."""
    side = image.shape[-1]
    found = []
    for k in range(tiles):
        tile = image[:, k * side : (k + 1) * side]
        scaled = (tile - tile.mean()) / (tile.var(correction=0) + 1e-5).sqrt()
        found.append(method.encoder(scaled[None])[0])
    return found


def by_hand(method: MultiTask, x: Views, y: Views) -> list[float]:
    """Rotation + position / 2 + 2 jigsaw, image by image and tile by tile."""
    heads: Any = method.heads
    found = []
    for i in range(len(x)):
        turned, placed, ordered = (view.data[i] for view in x.main[:3])
        scores = heads["rotation"](method.encoder(turned[None]))[0].tolist()
        rotation = log_loss(scores, int(turns_of(y.main[0])[i]))
        order = order_of(y.main[1])[i].tolist()
        z, places = tiles_by_hand(method, placed, 9), [0, 1, 2, 3, 5, 6, 7, 8]
        position = 0.0
        for k, cell in enumerate(places):
            pair = torch.cat([z[order.index(4)], z[order.index(cell)]])
            position += log_loss(heads["position"](pair[None])[0].tolist(), k) / 8
        known = heads["jigsaw"].orders.tolist()
        g = [heads["jigsaw"].each(v[None])[0] for v in tiles_by_hand(method, ordered, 4)]
        scores = heads["jigsaw"].classifier(torch.cat(g)[None])[0].tolist()
        jigsaw = log_loss(scores, known.index(order_of(y.main[2])[i].tolist()))
        found.append(rotation + position / 2 + 2 * jigsaw)
    return found


def test_energy_is_the_loop_over_tasks_tiles_and_answers() -> None:
    method = a_method(**{**ALL, "colours": 0.0}).eval()
    whole = views(method)
    ((x, y),) = whole.pairs()
    ((_, other),) = whole.mismatched()
    assert x is y is whole
    assert isinstance(other, Views)
    for answers in (whole, other):
        found = method.energy(whole, answers).tolist()
        assert found == pytest.approx(by_hand(method, whole, answers), rel=1e-9)
    total = method.loss(whole, 0.0).total.item()
    assert total == pytest.approx(sum(by_hand(method, whole, whole)) / 4, rel=1e-9)


def alone(method: MultiTask, task: str) -> Method:
    """The method of one task on the same trunk, with the same head."""
    head = method.heads[task]
    made: Method
    match task:
        case "rotation":
            made = Rotation(method.encoder)
            made.classifier = head  # type: ignore[assignment]
        case "position":
            made = RelativePosition(method.encoder)
            made.head = head  # type: ignore[assignment]
        case "jigsaw":
            made = Jigsaw(method.encoder)
            made.head = head  # type: ignore[assignment]
        case _:
            made = Colourisation(method.encoder)
            made.head = head  # type: ignore[assignment]
    return made.double().train(method.training)


def test_energy_is_the_sum_of_those_of_the_methods_of_one_task() -> None:
    method = a_method(**ALL).eval()
    whole = views(method)
    ((_, other),) = whole.mismatched()
    assert isinstance(other, Views)
    for y in (whole, other):
        asked = (
            turns_of(y.main[0]), order_of(y.main[1]), order_of(y.main[2]), y.main[3],
        )  # fmt: skip
        found = torch.zeros(4, dtype=torch.float64)
        for (task, weight), x, answer in zip(ALL.items(), whole.main, asked, strict=True):
            each = alone(method, task).energy(x, answer)
            assert torch.allclose(
                weight * each, method.energies(whole, method.answers(y))[task], rtol=1e-12
            )
            found += weight * each
        assert torch.allclose(method.energy(whole, y), found, rtol=1e-12)


def test_every_task_is_a_part_of_the_loss() -> None:
    method = a_method(**ALL)
    whole = views(method)
    pairings = ["turn", "order", "order", "itself"]
    loss = method.loss(whole, 0.0)
    assert (list(loss.pull), loss.push) == (TASKS, {})
    method = a_method(**ALL)  # frequencies of colours have moved
    for task, view, pairing in zip(TASKS, whole.main, pairings, strict=True):
        one: Any = Views((view,), whole.index, pairing=pairing)  # type: ignore[arg-type]
        if task == "rotation":  # which wants all turns of an image
            expected = alone(method, task).energy(view, turns_of(view)).mean()
        else:
            expected = alone(method, task).loss(one, 0.0).total
        assert loss.pull[task].item() == pytest.approx(ALL[task] * expected.item(), rel=1e-10)


def test_gradients_of_the_tasks_add_up_in_the_trunk_and_stay_apart_in_the_heads() -> None:
    method = a_method(**ALL).eval()
    whole = views(method)
    trunk = [*method.encoder.parameters()]
    together = torch.autograd.grad(method.loss(whole, 0.0).total, trunk)
    added = [torch.zeros_like(p) for p in trunk]
    for task, part in method.loss(whole, 0.0).pull.items():
        method.zero_grad()
        part.backward(retain_graph=True)
        for total, parameter in zip(added, trunk, strict=True):
            assert parameter.grad is not None
            total += parameter.grad
        for other, head in method.heads.items():
            reached = [p.grad is not None for p in head.parameters()]
            assert all(reached) if other == task else not any(reached)
    for a, b in zip(together, added, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_mismatched_answers_are_wrong_for_every_task() -> None:
    method = a_method(**ALL)
    whole = views(method, n=12)
    ((x, y),) = whole.mismatched()
    assert x is whole
    assert isinstance(y, Views)
    assert (turns_of(whole.main[0]) != turns_of(y.main[0])).all()
    for k in (1, 2):
        assert (order_of(whole.main[k]) != order_of(y.main[k])).any(dim=1).all()
    assert torch.equal(y.main[3].data, whole.main[3].data.roll(1, dims=0))


def test_a_task_without_weight_is_not_there() -> None:
    method = a_method(rotation=0.0, jigsaw=0.0, colours=0.0)
    assert list(method.heads) == ["position"]
    assert len(method.plan().main) == 1
    one, whole = alone(method, "position"), views(method)
    found = method.loss(whole, 0.0).total.item()
    assert found == pytest.approx(one.loss(whole, 0.0).total.item(), rel=1e-12)
    assert list(a_method().heads) == ["rotation", "position", "colours"]
    for wrong in ({"rotation": 0.0, "position": 0.0, "colours": 0.0}, {"jigsaw": -1.0}):
        with pytest.raises(ValueError, match="0 or greater, and at least one is not 0"):
            a_method(**wrong)


def test_weights_can_be_said_on_the_command_line() -> None:
    found = method_arguments("MultiTask", {"jigsaw": "0.5", "harmonise": "true"})
    assert found == {"jigsaw": 0.5, "harmonise": True}
    assert method_arguments("IJEPA", {"area": "0.1,0.2"}) == {"area": (0.1, 0.2)}
    with pytest.raises(ValueError, match="area should be"):
        method_arguments("IJEPA", {"area": "0.1"})


def test_frequencies_of_colours_follow_in_training_only() -> None:
    method = a_method(**ALL).eval()
    whole, head = views(method), method.heads["colours"]
    before = head.frequencies.clone()  # type: ignore[operator]
    method.loss(whole, 0.0)
    assert torch.equal(head.frequencies, before)  # type: ignore[arg-type]
    one = alone(method, "colours").train()
    method.train().loss(whole, 0.0)
    after = head.frequencies.clone()  # type: ignore[operator]
    head.frequencies.copy_(before)  # type: ignore[operator]
    one.loss(Views(whole.main[3:], whole.index, pairing="itself"), 0.0)
    assert not torch.equal(after, before)
    assert torch.equal(after, head.frequencies)  # type: ignore[arg-type]


def test_plan_has_a_view_for_each_task_as_its_method_makes_it() -> None:
    method = a_method(**ALL, crop=0.6)
    plan = method.plan()
    assert plan.pairs == "tasks"
    turned, placed, ordered, coloured = plan.main
    assert turned == replace(Rotation(method.encoder, crop=0.6).plan().main[0], turns=None)
    assert (placed,) == RelativePosition(method.encoder, crop=0.6).plan().main
    assert (ordered,) == Jigsaw(method.encoder, crop=0.6).plan().main
    assert coloured == replace(LIGHT, crop=(0.6, 1.0))
    harmonised = a_method(**ALL, harmonise=True).plan().main
    assert harmonised[1].tiles == Tiles(drop=0.0)


def test_harmonised_inputs_have_no_colour_for_any_task_nor_afterwards() -> None:
    method = a_method(**ALL, harmonise=True).eval()
    whole, seen = views(method), []
    method.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.energy(whole, whole)
    method.encode(whole.main[3].data)
    assert len(seen) == 5
    for data in seen:  # channels differ by the normalisation alone
        apart = data.flatten(2) - data.flatten(2).mean(dim=2, keepdim=True)
        apart = apart / apart.norm(dim=2, keepdim=True)
        assert torch.allclose(apart, apart[:, :1].expand_as(apart), atol=1e-9)
    plain = a_method(**ALL).eval()
    data = whole.main[3].data
    assert torch.equal(plain.encode(data), plain.encoder(data))
    assert not torch.allclose(method.encode(data), method.encoder(data))


def test_needs_the_views_of_its_plan() -> None:
    method = a_method(**{**ALL, "colours": 0.0})
    whole = views(method)
    with pytest.raises(ValueError, match="needs 3 main views"):
        method.loss(replace(whole, main=whole.main[:2]), 0.0)
    with pytest.raises(ValueError, match="position needs a view cut into tiles"):
        method.loss(replace(whole, main=(whole.main[0], whole.main[0], whole.main[2])), 0.0)
    unmade = tuple(replace(view, made=None) for view in whole.main)
    with pytest.raises(ValueError, match="MultiTask needs views that know how they were made"):
        method.loss(replace(whole, main=unmade), 0.0)


def test_it_learns_all_tasks_at_once() -> None:
    """From pictures that tell the answers; the energy of wrong ones stays up."""
    torch.manual_seed(0)
    encoder = build_encoder("conv", 48, width=16, stages=2)
    method = MultiTask(encoder, **{**SMALL, "hidden": 32, "jigsaw": 1.0})
    plan = Plan(
        main=tuple(
            replace(view, crop=None, flip=0.0, tiles=view.tiles and replace(view.tiles, drop=0.3))
            for view in method.plan().main
        ),
        pairs="tasks",
    )
    optimiser = torch.optim.Adam(method.parameters(), lr=1e-2)
    for step in range(100):
        optimiser.zero_grad()
        batch = views(method, 16, step, plan).to(dtype=torch.float32)
        method.train().loss(batch, 0.0).total.backward()
        optimiser.step()
    with torch.no_grad():
        method.eval()
        whole = views(method, 32, 99, plan).to(dtype=torch.float32)
        ((_, other),) = whole.mismatched()
        assert isinstance(other, Views)
        right, wrong = (method.energies(whole, method.answers(y)) for y in (whole, other))
        for task in TASKS:
            assert (right[task] < wrong[task]).float().mean() > 0.8, task
        assert (method.energy(whole, whole) < method.energy(whole, other)).all()


QUICK = [
    "--image-size", "16", "--batch", "16", "--steps", "3", "--precision", "32", "--no-report",
]  # fmt: skip


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_trunk_goes_on_under_the_head_of_another_task(tmp_path: Path) -> None:
    """`--init` takes the encoder of a run, says nothing of its architecture, and leaves the head
    behind."""
    first, second = tmp_path / "rotation", tmp_path / "jigsaw"
    small = ["--encoder", "conv", "--encoder.width", "8", "--encoder.stages", "2"]
    one = ["pretrain", "synthetic:64", "--method", "Rotation", *small, *QUICK, "--out", str(first)]
    assert main(one) == 0
    assert main([
        "pretrain", "synthetic:64", "--method", "Jigsaw", "--init", str(first / "encoder"),
        "--method.width", "8", *QUICK, "--out", str(second),
    ]) == 0  # fmt: skip
    run = json.loads((second / "run.json").read_text())
    assert run["encoder"] == "conv"
    assert run["encoder_args"].items() >= {"width": 8, "stages": 2}.items()
    trained, start, after = (
        weights(folder) for folder in
        (first / "encoder", second / "encoder_start", second / "encoder")
    )  # fmt: skip
    assert trained.keys() == start.keys() == after.keys()
    untrained = weights(first / "encoder_start")
    assert any(not torch.equal(trained[k], untrained[k]) for k in trained)
    assert all(torch.equal(trained[k], start[k]) for k in trained)
    assert any(not torch.equal(after[k], start[k]) for k in after)
    assert main(["pretrain", "--resume", str(second), "--no-report"]) == 0
