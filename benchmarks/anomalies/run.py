"""What does not belong? One-class detection on six classes of Caltech-101, and on magnetic tiles.

    python benchmarks/anomalies/run.py DATA [--seeds 0 1 2 3 4] [--minutes 3]

Caltech-101: each of the six largest classes in turn is normal. An energy is fitted on 70 % of its
images and asked about the others and as many images of other classes, at most one of each (no
background images). What is chosen here is chosen for all classes; no label of an anomaly is used.

Tiles: an energy is fitted on 752 tiles without a defect and asked about 200 without and 392 with
one; windows of 16 pixels of the shorter side's 64 give a map, which is compared with the masks.

KMeans and PCA see pixels without contrast and are fitted on the normal images of each class, as the
autoencoder is trained on them; SimCLR learns for some minutes from 3,000 images of Imagenette, once
for all classes. What is in results.json is not measured again.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

import erg
from erg.apply.anomalies import Anomalies, anomalies, localised
from erg.apply.embed import Opened, open_for
from erg.commands.anomalies import read_masks
from erg.recipes.default import Seen, default
from erg.train.run import environment
from erg.views.plan import Augmentation, Plan

RESULTS = Path(__file__).parent / "results.json"
CLASSES = ("airplanes", "Motorbikes", "Faces_easy", "watch", "Leopards", "car_side")
PIXELS = {"encoder": "pixels", "encoder_args": {"side": 16, "contrast": True}, "image_size": 32}
CONV = {"encoder": "conv", "encoder_args": {"width": 32, "stages": 4}, "image_size": 32}
WINDOW, STRIDE = 16, 4

# Fields of a Run; those with "data" are trained once, the others on every normal set.
MODELS: dict[str, dict[str, Any]] = {
    "KMeans": {"method": "KMeans", "method_args": {"k": 10}, **PIXELS, "steps": 60, "batch": 64},
    "PCA": {"method": "PCA", "method_args": {"k": 32}, **PIXELS, "steps": 4, "batch": 64},
    "Autoencoder": {
        "method": "Autoencoder", "method_args": {"dim": 32}, **CONV, "steps": 400, "batch": 64,
    },
    "SimCLR on Imagenette": {"data": "imagenette128_train.parquet"},
}  # fmt: skip


def one_class(opened: Opened, name: str, seed: int) -> tuple[Opened, Opened]:
    """Normal images to fit on; the rest of the class and as many images of others, one of each."""
    assert opened.labels is not None
    random = np.random.default_rng(seed)
    codes = opened.labels
    own = opened.classes.index(name)
    mine = random.permutation(np.flatnonzero(codes == own))
    cut = int(0.7 * len(mine))
    others = [i for i, c in enumerate(opened.classes) if i != own and c != "BACKGROUND_Google"]
    chosen = random.permutation(others)[: len(mine) - cut]
    strange = [int(random.choice(np.flatnonzero(codes == i))) for i in chosen]
    asked = np.sort(np.array([*mine[cut:], *strange]))
    return replace(opened, rows=np.sort(mine[:cut])), replace(opened, rows=asked)


def run_of(chosen: dict[str, Any], seed: int) -> erg.Run:
    optimiser = erg.Optimiser(lr=2e-3, weight_decay=1e-4)
    return erg.Run(seed=seed, hold_out=1, optimiser=optimiser, **chosen)


def as_arrays(opened: Opened) -> list[np.ndarray]:
    pixels = opened.images.pixels(opened.rows)  # type: ignore[union-attr]
    return [pixels.image(i) for i in range(len(opened.rows))]


class Arrays:
    """A data set of images of any size, as `open_source` takes one."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self.images[index]


def trained(
    name: str, known: Opened, seed: int, shared: Callable[[str, int], Path], folder: Path
) -> Any:
    """A model: the one of this seed for all, or one fitted on the normal images alone."""
    if "data" in MODELS[name]:
        return shared(name, seed)
    return erg.fit(
        run_of(MODELS[name], seed), Arrays(as_arrays(known)), folder / "run", observers=()
    )


def caltech(data: Path, name: str, seed: int, shared: Callable[[str, int], Path]) -> dict[str, Any]:
    """1 - AUROC and AUPR of every energy, by class."""
    opened = open_for(
        erg.build_encoder("pixels", 32), str(data / "caltech101_128.parquet"), label="label"
    )
    found: dict[str, Any] = {}
    for wanted in CLASSES:
        known, asked = one_class(opened, wanted, seed)
        with tempfile.TemporaryDirectory() as folder:
            model = trained(name, known, seed, shared, Path(folder))
            seen = anomalies(model, asked, normal=known, label="label", normal_class=wanted)
        found[wanted] = told(seen)
    return {"classes": found, "environment": environment()}


def tiles(data: Path, name: str, seed: int, shared: Callable[[str, int], Path]) -> dict[str, Any]:
    """AUROC and AUPR of images and AUROC of pixels, of every energy."""
    encoder = erg.build_encoder("pixels", 32)
    known, asked = (
        open_for(encoder, str(data / f"mtile_ad_{part}.parquet"), label="label")
        for part in ("train", "test")
    )
    normal = {"normal": known, "label": "label", "normal_class": "normal"}
    masks = read_masks(data / "mtile_ad_test.parquet", "mask", asked.rows)
    with tempfile.TemporaryDirectory() as folder:
        if "data" in MODELS[name]:
            model: Any = shared(name, seed)
        else:
            # Crops as large as the windows: about 1/16 of an image.
            plan = Plan((Augmentation(crop=(0.04, 0.08), ratio=(1.0, 1.0)),), pairs="alone")
            chosen = {**MODELS[name], "image_size": WINDOW}
            if chosen["encoder"] == "conv":
                chosen = {**chosen, "encoder_args": {"width": 32, "stages": 3}, "steps": 1000}
            run = replace(run_of(chosen, seed), plan=plan)
            model = erg.fit(run, Arrays(as_arrays(known)), Path(folder) / "run", observers=())
        seen = localised(model, asked, window=WINDOW, stride=STRIDE, seed=seed, **normal)
    scores = told(seen)
    for energy, score in seen.located(masks).items():
        scores[energy]["auroc_pixels"] = asdict(score)
    return {"scores": scores, "environment": environment()}


def told(seen: Anomalies) -> dict[str, Any]:
    return {
        energy: {kind: asdict(score) for kind, score in scores.items()}
        for energy, scores in seen.judged().items()
    }


def missing(done: dict[str, Any], seeds: list[int], models: list[str]) -> Iterator[tuple[str, ...]]:
    for seed in seeds:
        for name in models:
            for what in ("Caltech-101", "tiles"):
                if what == "tiles" and (
                    "data" in MODELS[name] or MODELS[name]["encoder"] != "conv"
                ):
                    continue
                if f"{what}; {name}; seed {seed}" not in done:
                    yield what, name, str(seed)


def run() -> None:
    """Measure what is missing, write after each, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--only", choices=("Caltech-101", "tiles"))
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as place:

        def shared(name: str, seed: int) -> Any:
            folder = Path(place) / f"{name} {seed}"
            if not folder.exists():
                file = str(options.data / MODELS[name]["data"])
                made, _ = default(Seen(3000, 128, False), data=file, seed=seed)
                erg.fit(made, out=folder, minutes=options.minutes, observers=())
            return erg.load(folder)

        for what, name, seed in missing(done, options.seeds, options.models):
            if options.only in (None, what):
                measure = caltech if what == "Caltech-101" else tiles
                done[f"{what}; {name}; seed {seed}"] = measure(
                    options.data, name, int(seed), shared
                )
                RESULTS.write_text(json.dumps(done, indent=1))
                print(what, name, seed, flush=True)
    table(done)


def table(done: dict[str, Any]) -> None:
    """Mean 1 - AUROC over classes and seeds, and what it is of PCA's on the same images."""
    errors: dict[str, list[float]] = {}
    for key, found in done.items():
        what, name, _ = key.split("; ")
        if what == "Caltech-101":
            classes = list(found["classes"].values())
            for energy in classes[0]:
                label = energy if energy.startswith("pixels") else f"{name}, {energy}"
                wrong = float(np.mean([1 - each[energy]["auroc"]["value"] for each in classes]))
                errors.setdefault(label, []).append(wrong)
    if errors:
        pca = np.mean(errors["pixels, PCA"])
        print("| Caltech-101, six classes | 1 - AUROC | from | to | of PCA's |")
        print("|---|---|---|---|---|")
        for label, values in sorted(errors.items(), key=lambda item: np.mean(item[1])):
            cells = [f"{v:.4f}" for v in (np.mean(values), min(values), max(values))]
            print(f"| {label} | {' | '.join(cells)} | {np.mean(values) / pca:.2f} |")
    print("\n| tiles | AUROC | AUPR of defective | AUROC of pixels |\n|---|---|---|---|")
    for key, found in done.items():
        what, name, seed = key.split("; ")
        if what == "tiles":
            for energy, scores in found["scores"].items():
                cells = [f"{scores[k]['value']:.3f}" for k in ("auroc", "aupr", "auroc_pixels")]
                print(f"| {name}, {energy}, {seed} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run()
