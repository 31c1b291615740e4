"""iBOT: DINO where nothing is hidden, a loop over patches, centres, what is frozen and follows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from erg.encoders import build_encoder
from erg.methods.dino import DINO
from erg.methods.ibot import IBOT
from erg.schedule import Constant
from erg.testing import check_method
from erg.views.plan import DINO_FIRST, DINO_SECOND
from erg.views.types import Mask, View, Views

VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
                       "dynamic_img_size": True}  # fmt: skip
HEAD: dict[str, Any] = {"prototypes": 7, "hidden": 9, "dim": 5}
SIDE, GRID, CELLS = 12, (3, 3), 9


def hide(*rows: list[int]) -> Mask:
    hidden = torch.zeros(len(rows), 1, CELLS, dtype=torch.bool)
    for i, row in enumerate(rows):
        hidden[i, 0, row] = True
    return Mask(hidden, GRID)


MASKS = hide([0, 2, 3], [], [4, 5, 6, 7, 8]), hide([], [1], [0, 8])
NOTHING = hide([], [], [])


def images(side: int, seed: int, mask: Mask | None = None) -> View:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(3, 3, side, side, generator=generator, dtype=torch.float64)
    return View(data, mask=mask)


def views(*local: int, masks: tuple[Mask, Mask] = MASKS) -> Views:
    main = tuple(images(SIDE, i, mask) for i, mask in enumerate(masks))
    return Views(
        main, torch.arange(3), local=tuple(images(side, 2 + i) for i, side in enumerate(local))
    )


def a_method(**arguments: Any) -> IBOT:
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    method = IBOT(encoder, **{**HEAD, **arguments}).double()
    with torch.no_grad():  # a teacher that is no longer the student
        for teacher in (method.teacher, method.teacher_heads):
            for p in teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
        method.blank.normal_()
        for centre in (method.centre, method.patch_centre):
            centre.mean.copy_(0.1 * torch.randn(centre.mean.shape))
    return method


@pytest.mark.parametrize("local", [(), (8,), (4, 8)])
def test_without_masks_it_is_dino(local: tuple[int, ...]) -> None:
    method = a_method(teacher_start=0.05, teacher_end=0.15, warmup=0.4)
    encoder = build_encoder("vit_tiny_patch16_224", SIDE, **VIT)
    dino = DINO(encoder, **HEAD, teacher_start=0.05, teacher_end=0.15, warmup=0.4).double()
    with torch.no_grad():
        pairs = [
            (dino.encoder, method.encoder), (dino.head[:5], method.heads.projector),
            (dino.prototypes, method.heads.directions), (dino.centre, method.centre),
        ]  # fmt: skip
        network, heads = dino.teacher.network, method.teacher_heads.network
        pairs += [
            (network[0], method.teacher.network), (network[1][:5], heads.projector),
            (network[1][5], heads.directions),
        ]  # fmt: skip
        for to, of in pairs:
            to.load_state_dict(of.state_dict())
    batch = views(*local, masks=(NOTHING, NOTHING))
    for progress in (0.2, 0.9):  # the second time with a centre that has moved
        loss, wanted = method.loss(batch, progress), dino.loss(batch, progress).total
        assert loss.pull["patches"].item() == 0
        assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-12)
        assert torch.allclose(method.centre.mean, dino.centre.mean, atol=1e-12)
    x, y = batch.main
    assert torch.allclose(method.energy(x, y), dino.energy(x, y), atol=1e-12)


def cross(code: Tensor, scores: Tensor) -> float:
    whole = math.log(sum(map(math.exp, scores.tolist())))
    pairs = zip(code.tolist(), scores.tolist(), strict=True)
    return -sum(c * (s - whole) for c, s in pairs)


@pytest.mark.parametrize("shared", [True, False])
def test_loss_is_the_loop_over_crops_and_patches(shared: bool) -> None:
    method, batch = a_method(temperature=0.2, shared=shared).eval(), views(8)
    heads, taught = method.heads, method.teacher_heads.network
    mine = heads.directions if shared else heads.token_directions
    theirs = taught.directions if shared else taught.token_directions
    assert mine is not None
    assert theirs is not None
    of_views, of_patches, codes = [], 0.0, []
    for view in batch.main:
        assert view.mask is not None
        vector, tokens = method.encoder.masked(view.data, view.mask, method.blank)
        whole, cells = method.teacher.network.with_tokens(view.data)
        of_views.append(heads.directions(heads.projector(vector)) / 0.2)
        raw = taught.directions(taught.projector(whole))
        codes.append(((raw - method.centre.mean) / 0.07).softmax(dim=1))
        for i in range(3):
            hidden = view.mask.hidden[i, 0].nonzero().flatten().tolist()
            for p in hidden:
                raw = theirs(taught.projector(cells[i, p : p + 1]))[0]
                code = ((raw - method.patch_centre.mean) / 0.07).softmax(dim=0)
                scores = mine(heads.projector(tokens[i, p : p + 1]))[0] / 0.2
                of_patches += cross(code, scores) / len(hidden) / 6
    vector = method.encoder(batch.local[0].data)
    of_views.append(heads.directions(heads.projector(vector)) / 0.2)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    wanted = sum(cross(codes[t][i], of_views[v][i]) / 12 for t, v in pairs for i in range(3))
    loss = method.loss(batch, 1.0)
    assert loss.push == {}
    assert loss.pull["code"].item() == pytest.approx(wanted, rel=1e-10)
    assert loss.pull["patches"].item() == pytest.approx(of_patches, rel=1e-10)


def test_equal_codes_cost_their_entropy() -> None:
    """Every image hides the one patch it has, and the teacher gives the student's own code."""
    torch.manual_seed(0)
    method: Any = IBOT(
        build_encoder("vit_tiny_patch16_224", 4, **VIT), **HEAD, teacher_start=0.1,
        teacher_end=0.1, small_crops=0,
    ).double()  # fmt: skip
    mask = Mask(torch.ones(3, 1, 1).bool(), (1, 1))
    main = tuple(images(4, i, mask) for i in range(2))
    data, whole = torch.cat([v.data for v in main]), Mask(torch.ones(6, 1, 1).bool(), (1, 1))
    vectors, tokens = method.encoder.masked(data, whole, method.blank)
    scores = method.heads(vectors, tokens[:, 0])[1].detach()
    method.taught = lambda data: (scores, scores)
    p = (scores / 0.1).softmax(dim=1)
    entropy = -(p * p.log()).sum(dim=1).mean()
    loss = method.loss(Views(main, torch.arange(3)), 0.5)
    assert loss.pull["patches"].item() == pytest.approx(entropy.item(), rel=1e-10)


def test_centres_move_after_the_loss_and_only_in_training() -> None:
    method, batch = a_method(centre=0.7), views(8)
    old = method.centre.mean.clone(), method.patch_centre.mean.clone()
    data = torch.cat([view.data for view in batch.main])
    taught, patches = method.taught(data)
    assert patches.shape == (6 * CELLS, 7), "all patches, hidden or not"
    first = method.loss(batch, 0.5).total.item()
    for centre, before, raw in zip(
        (method.centre, method.patch_centre), old, (taught, patches), strict=True
    ):
        assert torch.allclose(centre.mean, 0.7 * before + 0.3 * raw.mean(dim=0), atol=1e-12)
    moved = method.loss(batch, 0.5).total.item()
    assert moved != pytest.approx(first, rel=1e-6)
    state = {name: t.clone() for name, t in method.state_dict().items()}
    method.eval().loss(batch, 0.5)
    assert all(torch.equal(t, state[name]) for name, t in method.state_dict().items())


def test_uniform_scores_cost_the_logarithm_of_their_number() -> None:
    method = a_method()
    with torch.no_grad():
        weight = method.heads.directions.weight
        weight.copy_(weight[:1].expand(7, -1))
    loss = method.loss(views(8), 0.5)
    assert loss.pull["code"].item() == pytest.approx(math.log(7), rel=1e-10)
    # Four of the six large crops hide something.
    assert loss.pull["patches"].item() == pytest.approx(4 / 6 * math.log(7), rel=1e-10)


def test_the_student_sees_no_hidden_pixel_and_the_teacher_all() -> None:
    method, batch = a_method().eval(), views()
    x, y = batch.main
    assert x.mask is not None
    cells = x.mask.hidden.reshape(3, 1, *GRID).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = x.with_data(torch.where(cells, images(SIDE, 9).data, x.data))
    assert torch.equal(method.energy(other, y), method.energy(x, y))
    changed = method.energy(y, other) != method.energy(y, x)
    assert changed.tolist() == [True, False, True], "the second image of x hides nothing"


def test_gradients_reach_the_student_alone() -> None:
    method = a_method(shared=False)
    method.loss(views(8), 0.5).total.backward()
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("teacher"), name
    assert method.blank.grad is not None
    assert float(method.blank.grad.abs().sum()) > 0


def test_frozen_names_all_directions_until_their_time() -> None:
    for shared, count in ((True, 1), (False, 2)):
        method = a_method(freeze=0.2, shared=shared)
        frozen = [*method.frozen(0.19)]
        assert [p.shape for p in frozen] == [(7, 5)] * count
        assert list(method.frozen(0.2)) == []


def test_teachers_follow() -> None:
    method = a_method(momentum=Constant(0.5))
    pairs = [(method.teacher, method.encoder), (method.teacher_heads, method.heads)]
    before = [[p.clone() for p in teacher.parameters()] for teacher, _ in pairs]
    method.after_step(0.5)
    for (teacher, student), old in zip(pairs, before, strict=True):
        for was, now, fast in zip(old, teacher.parameters(), student.parameters(), strict=True):
            assert torch.allclose(now, (was + fast) / 2, atol=1e-14)


def test_plan_hides_blocks_in_large_crops_alone() -> None:
    plan = a_method(small_crops=3, ratio=0.4, spread=0.1, masked=0.7).plan()
    for view in plan.main:
        assert view.mask is not None
        mask = view.mask
        assert (mask.grid, mask.ratio, mask.spread, mask.masked) == (GRID, 0.4, 0.1, 0.7)
        assert mask.kind == "blocks"
    assert [view.mask for view in plan.local] == [None] * 3
    kind = a_method(blocks=False).plan().main[0].mask
    assert kind is not None
    assert kind.kind == "random"
    small = {**VIT, "depth": 1}
    large = IBOT(build_encoder("vit_tiny_patch16_224", 128, **small), **HEAD).plan()
    for view, like in zip(large.main, (DINO_FIRST, DINO_SECOND), strict=True):
        assert (view.crop, view.blur, view.solarise) == ((0.25, 1.0), like.blur, like.solarise)
    assert [view.crop for view in large.local] == [(0.05, 0.25)] * 10


def test_what_it_cannot_do_it_says() -> None:
    with pytest.raises(ValueError, match="IBOT needs patch tokens; conv gives one vector"):
        IBOT(build_encoder("conv", 16), **HEAD)
    fixed = build_encoder("vit_tiny_patch16_224", SIDE, **{**VIT, "dynamic_img_size": False})
    with pytest.raises(ValueError, match="dynamic_img_size"):
        IBOT(fixed, **HEAD)
    with pytest.raises(ValueError, match="needs views with masks"):
        a_method().energy(images(SIDE, 0), images(SIDE, 1))


def test_it_keeps_the_contract_with_small_crops() -> None:
    check_method(
        IBOT,
        arguments={**HEAD, "small_crops": 1, "shared": False},
        encoder="vit_tiny_patch16_224",
        encoder_arguments={**VIT, "depth": 1},
    )


SWIN: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2,
                        "dynamic_img_size": True}  # fmt: skip


def on_swin(**arguments: Any) -> IBOT:
    """Its last tokens stand for 8 pixels each, a grid of 2 x 2."""
    torch.manual_seed(0)
    encoder = build_encoder("swin_tiny_patch4_window7_224", 16, **SWIN)
    method = IBOT(encoder, **{**HEAD, "stride": 8, "shared": False, **arguments}).double()
    with torch.no_grad():
        for teacher in (method.teacher, method.teacher_heads):
            for p in teacher.parameters():
                p.add_(0.1 * torch.randn_like(p))
        method.blank.normal_()
    return method


def on_last_grid(seed: int, *rows: list[int]) -> View:
    hidden = torch.zeros(len(rows), 1, 4, dtype=torch.bool)
    for i, row in enumerate(rows):
        hidden[i, 0, row] = True
    return images(16, seed, Mask(hidden, (2, 2)))


def test_on_a_swin_loss_is_the_loop_over_its_last_tokens() -> None:
    method = on_swin().eval()
    main = on_last_grid(0, [0, 3], [], [1]), on_last_grid(1, [2], [0, 1, 2], [])
    batch = Views(main, torch.arange(3), local=(images(8, 2),))
    heads, taught = method.heads, method.teacher_heads.network
    assert heads.token_directions is not None
    assert taught.token_directions is not None
    net: Any = method.encoder.network
    theirs: Any = method.teacher.network.network
    of_views, codes, of_patches = [], [], 0.0
    for view in main:
        assert view.mask is not None
        seen = view.data.clone()
        for i, p in view.mask.hidden[:, 0].nonzero().tolist():
            row, column = 8 * (p // 2), 8 * (p % 2)
            seen[i, :, row : row + 8, column : column + 8] = method.blank
        tokens = net.forward_features(seen).reshape(3, 4, -1)  # row-major
        cells = theirs.forward_features(view.data).reshape(3, 4, -1)
        of_views.append(heads.directions(heads.projector(tokens.mean(dim=1))) / 0.1)
        codes.append((taught.directions(taught.projector(cells.mean(dim=1))) / 0.07).softmax(1))
        for i in range(3):
            hidden = view.mask.hidden[i, 0].nonzero().flatten().tolist()
            for p in hidden:
                raw = taught.token_directions(taught.projector(cells[i, p : p + 1]))[0]
                scores = heads.token_directions(heads.projector(tokens[i, p : p + 1]))[0] / 0.1
                of_patches += cross((raw / 0.07).softmax(0), scores) / len(hidden) / 6
    small = net.forward_features(batch.local[0].data).flatten(1, 2).mean(dim=1)
    of_views.append(heads.directions(heads.projector(small)) / 0.1)
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    wanted = sum(cross(codes[t][i], of_views[v][i]) / 12 for t, v in pairs for i in range(3))
    loss = method.loss(batch, 1.0)
    assert loss.pull["code"].item() == pytest.approx(wanted, rel=1e-10)
    assert loss.pull["patches"].item() == pytest.approx(of_patches, rel=1e-10)
    loss.total.backward()
    assert method.blank.grad is not None
    assert float(method.blank.grad.abs().sum()) > 0


def test_on_a_swin_masks_stand_on_the_last_grid() -> None:
    plan = on_swin(small_crops=3).plan()
    assert [view.mask and view.mask.grid for view in plan.main] == [(2, 2)] * 2
    assert [view.mask for view in plan.local] == [None] * 3
    with pytest.raises(ValueError, match="tokens of 6 pixels do not fill an image of 16"):
        on_swin(stride=6)
    method, nothing = on_swin(stride=4), Mask(torch.zeros(3, 1, 16).bool(), (4, 4))
    with pytest.raises(ValueError, match="gives 4 tokens, and masks are of 16"):
        method.energy(images(16, 0, nothing), images(16, 1))


def test_on_a_swin_it_keeps_the_contract() -> None:
    check_method(
        IBOT,
        arguments={**HEAD, "small_crops": 1, "stride": 8},
        encoder="swin_tiny_patch4_window7_224",
        encoder_arguments=SWIN,
    )
