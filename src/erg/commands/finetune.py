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
    test: str | None = None,
    steps: int = 300,
    batch: int = 64,
    lr: float = 3e-3,
    scratch_lr: float = 1e-2,
    seed: int = 0,
    out: Path = Path("classifier"),
    method: str | None = None,
) -> int:
    """Fine-tune an encoder with a linear layer, and compare with training from scratch.

    Both learn from the same labels for the same number of steps, and are tested once on images
    that neither has seen. A linear probe on the encoder as it is stands beside them.

    Args:
        model: a run folder, or a folder with an encoder.
        data: images with labels to learn from.
        label: where labels are found: a parquet column, or `folder`.
        per_class: labels of each class to use; 0 for all.
        test: images to test on; without, data are split 80 / 20 by content.
        steps: optimiser steps.
        batch: images per step.
        lr: peak learning rate of fine-tuning.
        scratch_lr: peak learning rate from scratch, where more is better.
        seed: of the labels drawn, the order and the views.
        out: the folder to write the classifier to.
        method: repeats a method given by path, which is code.
    """
    from dataclasses import replace

    from erg.apply.finetune import Tuning
    from erg.classifiers import save_classifier
    from erg.commands.show import console, tell
    from erg.durable import write_atomically
    from erg.encoders import load_encoder
    from erg.train.fit import load

    fitted = load(model, method=method) if (model / "run.json").exists() else None
    encoder = load_encoder(model) if fitted is None else fitted.encoder
    tuning = Tuning(steps=steps, batch=batch, lr=lr, seed=seed)
    scratch = replace(tuning, lr=scratch_lr)
    classifier, scores = compared(encoder, data, label, test, per_class, (tuning, scratch), tell)
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
    encoder: Any,
    data: str,
    label: str,
    test: str | None,
    per_class: int,
    tunings: tuple[Any, Any],
    tell: Any,
) -> tuple[Any, dict[str, Any]]:
    """The fine-tuned classifier, and the accuracies of all that were trained.

    The first way of learning is that of fine-tuning, the second that from scratch.
    """
    from dataclasses import asdict

    from erg.apply.embed import open_for, vectors_of
    from erg.apply.finetune import afresh, few, finetune, right
    from erg.commands.show import counting
    from erg.data.manifest import split
    from erg.evaluate.intervals import bootstrap, difference
    from erg.evaluate.linear import fit_probe

    tuning, scratch = tunings
    opened = open_for(encoder, data, label=label)
    other = opened if test is None else open_for(encoder, test, label=label)
    rows, asked = split(opened.manifest) if test is None else (opened.rows, other.rows)
    rows = few(opened, rows, per_class or len(rows), seed=tuning.seed)
    assert other.labels is not None
    asked = asked[other.labels[asked] >= 0]
    tell(f"{len(rows)} labelled images, {len(opened.classes)} classes, {len(asked)} to test on.")
    found: dict[str, Any] = {}
    with counting("Fine-tuning") as progress:
        model = finetune(encoder, opened, rows, tuning, progress=progress)
    found["fine-tuned"] = right(model, other, asked)
    fresh = afresh(encoder, seed=tuning.seed)
    with counting("From scratch") as progress:
        found["from scratch"] = right(
            finetune(fresh, opened, rows, scratch, progress=progress), other, asked
        )
    a, b = (
        vectors_of(encoder, encoder, encoder, each, chosen)
        for each, chosen in ((opened, rows), (other, asked))
    )
    assert opened.labels is not None
    names, theirs = [*opened.classes, ""], [*other.classes, ""]
    probe = fit_probe(a, _named(names, opened.labels[rows]))
    found["linear probe, not tuned"] = probe.predict(b) == _named(theirs, other.labels[asked])
    gap = difference(found["fine-tuned"], found["from scratch"])
    value, low, high = (100 * part for part in (gap.value, gap.low, gap.high))
    better = "Pretraining helped" if low > 0 else "Pretraining did not clearly help"
    about = {
        "format": 1,
        "n_train": len(rows),
        "n_test": len(asked),
        "per_class": per_class or None,
        "split": "80 / 20 by content hash" if test is None else "two sets, as given",
        "accuracy": {name: asdict(bootstrap(each)) for name, each in found.items()},
        "verdict": f"{better}: {value:+.1f} points ({low:+.1f} to {high:+.1f}) over the same "
        "network from scratch.",
    }
    return model, about


def _named(classes: list[str], codes: Any) -> Any:
    import numpy as np

    return np.array(classes)[codes]
