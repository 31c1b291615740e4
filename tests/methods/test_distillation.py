"""Distillation: golden numbers, a loop over classes, teachers written and read, students."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erg.classifiers import Classifier, save_classifier
from erg.encoders import Encoder, build_encoder
from erg.methods.distillation import Distillation
from erg.views.plan import SIMCLR, SIMCLR_SMALL
from erg.views.types import View, Views


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def views(b: int = 5) -> Views:
    view = View(drawn(b, 3, 16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return Views((view,), torch.arange(b), pairing="itself")


def an_encoder(seed: int = 0, width: int = 8) -> Encoder:
    torch.manual_seed(seed)
    return build_encoder("conv", 16, width=width, stages=2)


def a_teacher(folder: Path) -> tuple[Encoder, nn.Linear]:
    """Written to a folder: wider than the student, with another mean and deviation."""
    model = Classifier(an_encoder(3, width=12), ("a", "b", "c", "d"))
    model.encoder.mean, model.encoder.std = (0.1, 0.2, 0.3), (0.6, 0.7, 0.8)
    with torch.no_grad():
        model.train()(drawn(20, 3, 16, 16))
    save_classifier(model, folder)
    return model.encoder.eval(), model.head


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_loss_is_golden(golden, temperature: float) -> None:
    method = Distillation(build_encoder("identity", 5), temperature=temperature).double()
    method.classifier = nn.Sequential()  # type: ignore[assignment]
    s, t = View(3 * golden.array("S0")), View(3 * golden.array("T0"))
    found = method.energy(s, t).mean()
    if temperature == 1:
        assert golden.agrees("distillation, temperature 1", found)
    else:
        assert golden.agrees("distillation, temperature 2, without T^2", found / 4)


def test_loss_is_the_loop_over_classes_of_a_teacher_that_was_written(tmp_path: Path) -> None:
    encoder, layer = a_teacher(tmp_path)
    method = Distillation(an_encoder(), teacher=str(tmp_path), temperature=0.5)
    batch = views()
    (x,) = batch.main
    shift, scale = (torch.tensor(v).view(-1, 1, 1) for v in (x.mean, x.std))
    pixels = x.data * scale + shift  # in [0, 1], then as the teacher wants it
    shift, scale = (torch.tensor(v).view(-1, 1, 1) for v in (encoder.mean, encoder.std))
    scores = layer(encoder((pixels - shift) / scale)).tolist()
    logits = method.logits(x).tolist()
    energies: list[float] = []
    for t, s in zip(scores, logits, strict=True):
        p = [math.exp(v / 0.5) for v in t]
        whole = math.log(sum(math.exp(v / 0.5) for v in s))
        energies.append(
            0.25 * sum(q / sum(p) * (whole - v / 0.5) for q, v in zip(p, s, strict=True))
        )
    assert method.energy(x, x).tolist() == pytest.approx(energies, rel=1e-5)
    assert method.loss(batch, 0.0).total.item() == pytest.approx(sum(energies) / 5, rel=1e-5)


def test_the_teacher_is_frozen_in_evaluation_and_the_student_learns(tmp_path: Path) -> None:
    a_teacher(tmp_path)
    for arguments in ({"teacher": str(tmp_path)}, {}):
        method = Distillation(an_encoder(), **arguments).train()
        assert method.encoder.training
        assert not any(module.training for module in method.teacher.modules())
        before = {name: t.clone() for name, t in method.teacher.state_dict().items()}
        method.loss(views(), 0.0).total.backward()
        for name, p in method.named_parameters():
            assert (p.grad is None) == name.startswith("teacher"), name
        for name, t in method.teacher.state_dict().items():
            assert torch.equal(t, before[name]), name


def test_a_student_learns_to_say_what_its_teacher_says(tmp_path: Path) -> None:
    a_teacher(tmp_path)
    method = Distillation(an_encoder(), teacher=str(tmp_path), temperature=0.2)
    optimiser = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr=1e-2)
    batch = views(24)
    p = method.target(batch.main[0])
    least = 0.2**2 * float(-(p * p.log()).sum(dim=1).mean())  # the entropy of what it says
    first = float(method.loss(batch, 0.0).total.detach()) - least
    for _ in range(60):
        optimiser.zero_grad()
        method.loss(batch, 0.0).total.backward()
        optimiser.step()
    last = float(method.loss(batch, 0.0).total.detach()) - least
    assert 0 <= last < 0.2 * first
    answers = method.logits(batch.main[0]).argmax(dim=1)
    assert float(answers.eq(p.argmax(dim=1)).float().mean()) > 0.9


def test_a_folder_without_a_teacher_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no classifier of erg"):
        Distillation(an_encoder(), teacher=str(tmp_path))


def test_a_teacher_of_another_fixed_size_is_refused(tmp_path: Path) -> None:
    vit: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", 32, **vit)
    save_classifier(Classifier(encoder, ("a", "b", "c")), tmp_path)
    with pytest.raises(ValueError, match="takes images of 32 pixels only"):
        Distillation(an_encoder(), teacher=str(tmp_path))
    swin = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}
    encoder = build_encoder("swin_tiny_patch4_window7_224", 32, **swin)
    save_classifier(Classifier(encoder, ("a", "b", "c")), tmp_path / "swin")
    with pytest.raises(ValueError, match="takes images of 32 pixels only"):
        Distillation(an_encoder(), teacher=str(tmp_path / "swin"))


def test_a_teacher_that_takes_any_size_teaches_smaller_images(tmp_path: Path) -> None:
    vit: dict[str, Any] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", 32, dynamic_img_size=True, **vit)
    save_classifier(Classifier(encoder, ("a", "b", "c")), tmp_path)
    method, batch = Distillation(an_encoder(), teacher=str(tmp_path)), views()
    assert method.target(batch.main[0]).shape == (5, 3)
    assert torch.isfinite(method.loss(batch, 0.0).total)


def test_plan_is_one_view_without_blur() -> None:
    plan = Distillation(an_encoder()).plan()
    assert (plan.main, plan.pairs) == ((SIMCLR_SMALL,), "itself")
    (large,) = Distillation(build_encoder("conv", 128, width=8)).plan().main
    assert (large.blur, large.crop, large.jitter) == (0.0, SIMCLR.crop, 0.8)
