"""erg finetune: a classifier from few labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(finetune_, args=list(arguments), prog="erg finetune")


def finetune_(
    model: Path,
    data: str,
    /,
    *,
    label: str,
    per_class: int = 0,
    head_layers: int = 0,
    test: str | None = None,
    steps: int = 300,
    batch: int = 64,
    lr: float = 3e-3,
    scratch_lr: float = 1e-2,
    seed: int = 0,
    out: Path = Path("classifier"),
    method: str | None = None,
    device: str | None = None,
) -> int:
    """Fine-tune an encoder with a linear layer, and compare with training from scratch.

    Both learn from the same labels for the same number of steps, and are tested once on images
    whose labels neither has seen. A linear probe on the encoder as it is stands beside them.

    Args:
        model: a run folder, or a folder with an encoder.
        data: images with labels to learn from.
        label: where labels are found: a parquet column, or `folder`.
        per_class: labels of each class to use; 0 for all.
        head_layers: of the projector that a run was trained with, the first so many layers stay
            between the encoder and the new linear layer: 1 in SimCLRv2, for which a wide encoder
            had three.
        test: images to test on; without, data are split 80 / 20 by content.
        steps: optimiser steps.
        batch: images per step.
        lr: peak learning rate of fine-tuning.
        scratch_lr: peak learning rate from scratch, where more is better.
        seed: of the labels drawn, the order and the views.
        out: the folder to write the classifier to.
        method: repeats a method given by path, which is code.
        device: cpu, cuda or mps; what is there if not given.
    """
    from dataclasses import replace

    from erg.apply.finetune import Tuning
    from erg.classifiers import first_layers, save_classifier
    from erg.commands.options import check_seed, is_run, where
    from erg.commands.show import compiling, console, tell
    from erg.durable import explained, write_atomically
    from erg.encoders import load_encoder
    from erg.train.fitted import load

    check_seed(seed)
    of_run = is_run(model, method)
    place = where(device)
    compiling()
    fitted = load(model, method=method, device=str(place)) if of_run else None
    encoder = load_encoder(model).to(place) if fitted is None else fitted.encoder
    kept = None
    if head_layers:
        if fitted is None:
            raise ValueError(
                f"{model} holds an encoder without its projector, of which no layers can be kept. "
                "Give the run folder, or leave --head-layers out."
            )
        kept = first_layers(getattr(fitted.method, "projector", None), head_layers)
    tuning = Tuning(steps=steps, batch=batch, lr=lr, seed=seed)
    scratch = replace(tuning, lr=scratch_lr)
    with explained(out):  # what cannot be kept need not be learned
        out.mkdir(parents=True, exist_ok=True)
    classifier, scores = compared(
        fitted or encoder, data, label, test, per_class, (tuning, scratch), tell, kept
    )
    save_classifier(classifier, out)
    write_atomically(out / "scores.json", json.dumps(scores, indent=1).encode())
    from rich.table import Table

    table = Table("", f"accuracy on {scores['n_test']} test images, %", title_justify="left")
    for name, score in scores["accuracy"].items():
        value, low, high = (100 * score[key] for key in ("value", "low", "high"))
        table.add_row(name, f"{value:.1f} ({low:.1f} to {high:.1f})")
    console.print(table)
    tell(scores["verdict"])
    tell(f"The classifier is in {out}.")
    return 0


def compared(
    model: Any,
    data: str,
    label: str,
    test: str | None,
    per_class: int,
    tunings: tuple[Any, Any],
    tell: Any,
    kept: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """The fine-tuned classifier, and the accuracies of all that were trained.

    The model is a run or an encoder, behind which layers of a projector may be kept. The first way
    of learning is that of fine-tuning, the second that from scratch.
    """
    from dataclasses import asdict

    from erg.apply.embed import known_already, open_for, trained_on, vectors_of
    from erg.apply.finetune import afresh, few, finetune, projector_afresh, right
    from erg.commands.show import counting
    from erg.data.splits import split
    from erg.encoders import Encoder
    from erg.evaluate.intervals import bootstrap, clear, difference
    from erg.evaluate.linear import fit_probe

    tuning, scratch = tunings
    encoder = model if isinstance(model, Encoder) else model.encoder
    opened = open_for(encoder, data, label=label, tell=tell)
    other = opened if test is None else open_for(encoder, test, label=label, tell=tell)
    rows, asked = split(opened.manifest) if test is None else (opened.rows, other.rows)
    rows = few(opened, rows, per_class or len(rows), seed=tuning.seed)
    assert other.labels is not None
    images = len(asked)
    asked = asked[other.labels[asked] >= 0]
    if not len(asked):
        raise ValueError(
            f"none of {images} images to test on has a label. Look at --label, or name labelled "
            "ones with --test."
        )
    tell(f"{len(rows)} labelled images, {len(opened.classes)} classes, {len(asked)} to test on.")
    leaked = int(known_already(opened, rows, other, asked).sum())
    if leaked:
        tell(f"{leaked:,} of {len(asked):,} test images are also among those to learn from.")
    seen = 0
    if not isinstance(model, Encoder):
        seen = int(trained_on(model, other)[asked].sum())
    if seen:
        tell(f"The encoder was trained on {seen:,} of the test images, without labels.")
    contents = other.manifest.hashes[asked]
    found: dict[str, Any] = {}
    with counting("Fine-tuning") as progress:
        classifier = finetune(encoder, opened, rows, tuning, projector=kept, progress=progress)
    found["fine-tuned"] = right(classifier, other, asked)
    fresh = afresh(encoder, seed=tuning.seed)
    blank = None if kept is None else projector_afresh(kept, seed=tuning.seed)
    with counting("From scratch") as progress:
        found["from scratch"] = right(
            finetune(fresh, opened, rows, scratch, projector=blank, progress=progress),
            other,
            asked,
        )
    a, b = (
        vectors_of(encoder, encoder, encoder, each, chosen)
        for each, chosen in ((opened, rows), (other, asked))
    )
    probe = fit_probe(a, opened.names(rows), groups=opened.manifest.hashes[rows])
    found["linear probe, not tuned"] = probe.predict(b) == other.names(asked)
    both = found["fine-tuned"], found["from scratch"]
    gap = difference(*both, groups=contents)
    value, low, high = (100 * part for part in (gap.value, gap.low, gap.high))
    surely = clear(gap, *both, groups=contents)
    better = "Pretraining helped" if surely else "Pretraining did not clearly help"
    about = {
        "format": 1,
        "n_train": len(rows),
        "n_test": len(asked),
        "n_seen": seen,
        "n_leaked": leaked,
        "per_class": per_class or None,
        "split": "80 / 20 by content hash" if test is None else "two sets, as given",
        "accuracy": {
            name: asdict(bootstrap(each, groups=contents)) for name, each in found.items()
        },
        "gap": {**asdict(gap), "clear": surely},
        "verdict": f"{better}: {value:+.1f} points ({low:+.1f} to {high:+.1f}) over the same "
        "network from scratch.",
    }
    return classifier, about
