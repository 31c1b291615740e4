"""Distillation of a classifier on unlabelled images (Hinton et al. 2015; Chen et al. 2020)."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from erg import distributed, energy
from erg.classifiers import Classifier, load_classifier
from erg.encoders import Encoder
from erg.method import Cell, Loss, Method
from erg.views.plan import LARGE, SIMCLR, SIMCLR_SMALL, Plan
from erg.views.types import View, Views


class Distillation(Method):
    """F(x, y) = -T^2 sum_k p'_k(y) log p_k(x): a frozen classifier's opinion of y told from x.

    p = softmax(W f(x) / T) of the student and p' of the teacher at the same T; x and y are the same
    view. L is the mean of F (Chen et al. 2020, SimCLRv2, eq. 2): no label is needed, the teacher
    has seen what labels there are. T^2 keeps the size of gradients (Hinton et al. 2015).

    Departs from the paper: T^2 is its code's, not its equation's; labels of its weighted sum (eq.
    3) never reach a method.
    Checked against: golden numbers at T = 1 and 2; a loop over classes; students that become their
    teacher.

    Args:
        teacher: folder that `erg finetune` wrote; empty takes the encoder as it starts, its
            features being the scores.
        temperature: T (1 for smaller students, 0.1 for one like its teacher).
    """

    cell = Cell("joint-embedding", "architectural", by="a frozen teacher")

    def __init__(self, encoder: Encoder, *, teacher: str = "", temperature: float = 1.0) -> None:
        super().__init__(encoder)
        self.temperature = temperature
        if teacher:
            self.teacher = load_classifier(Path(teacher)).requires_grad_(False)
            classes, theirs = len(self.teacher.classes), self.teacher.encoder
            if theirs.one_size and theirs.image_size != encoder.image_size:
                raise ValueError(
                    f"the teacher {theirs.name} takes images of {theirs.image_size} pixels only "
                    f"(the student's have {encoder.image_size}). Train the student at that size."
                )
        else:
            self.teacher = copy.deepcopy(encoder).requires_grad_(False)
            classes = encoder.dim
        self.classifier = nn.Linear(encoder.dim, classes)

    def train(self, mode: bool = True) -> "Distillation":
        """As in torch, but the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def plan(self) -> Plan:
        small = self.encoder.image_size < LARGE
        view = SIMCLR_SMALL if small else replace(SIMCLR, blur=0.0)
        return Plan(main=(view,), pairs="itself")

    def logits(self, view: View) -> Float[Tensor, "b k"]:
        return self.classifier(self.encoder(view.data))

    @torch.no_grad()
    def target(self, view: View) -> Float[Tensor, "b k"]:
        """p', of a teacher that normalises images in its own way."""
        teacher = self.teacher
        own = isinstance(teacher, Classifier)
        scores = teacher.of_unit(view.unit()) if own else teacher(view.data)
        return (energy.at_least_float32(scores) / self.temperature).softmax(dim=1)

    def energy(self, x: View, y: View) -> Float[Tensor, " b"]:
        t = self.temperature
        return t**2 * energy.cross_entropy(self.logits(x) / t, self.target(y))

    def loss(self, views: Views, progress: float) -> Loss:
        (x,) = views.need(1)
        return Loss(pull={"opinion": distributed.mean(self.energy(x, x))})
