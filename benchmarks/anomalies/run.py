"""What does not belong? One-class detection on six classes of Caltech-101, and on magnetic tiles.

    python benchmarks/anomalies/run.py DATA [--seeds 5 6 7 8 9] [--minutes 3] [--threads 1]
    python benchmarks/anomalies/run.py DATA --seeds 0 1 2 3 4 --results FILE

Caltech-101: each of the six largest classes in turn is normal. An energy is fitted on 70 % of its
images and asked about the others and as many images of other classes, at most one of each (no
background images). What is chosen here is chosen for all classes; no label of an anomaly is used.
What is claimed is claimed of one energy, CLAIMED: at most 0.8 of the error of PCA. It stands beside
PCA of the pixels, and beside PCA of the pixels without contrast that it sees itself. It was chosen
on the draws of seeds 0 to 4, so it is judged on others. Of KMeans there is a further energy: its
own times that of PCA of the pixels.

Tiles: an energy is fitted on 752 tiles without a defect and asked about 200 without and 392 with
one; windows of 16 pixels of the shorter side's 64 give a map, which is compared with the masks.

KMeans and PCA see pixels without contrast and are fitted on the normal images of each class, as the
autoencoder is trained on them; SimCLR learns for some minutes from 3,000 images of Imagenette, once
for all classes. What is in results.json is not measured again. All takes 50 minutes on one core.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import erg
from erg.apply.anomalies import Anomalies, anomalies
from erg.apply.embed import Opened, open_for
from erg.apply.windows import localised
from erg.commands.anomalies import read_masks
from erg.durable import write_atomically
from erg.recipes.default import Seen, default
from erg.train.run import environment
from erg.views.plan import Augmentation, Plan

RESULTS = Path(__file__).parent / "results.json"
CLASSES = ("airplanes", "Motorbikes", "Faces_easy", "watch", "Leopards", "car_side")
PIXELS = {"encoder": "pixels", "encoder_args": {"side": 16, "contrast": True}, "image_size": 32}
CONV = {"encoder": "conv", "encoder_args": {"width": 32, "stages": 4}, "image_size": 32}
WINDOW, STRIDE = 16, 4

CLAIMED, BAR = "KMeans, energy", 0.8
BESIDE = {
    "pixels, PCA": "PCA of the pixels",
    "PCA, energy": "PCA of the pixels without contrast that it sees",
}
"""What it is compared with, and what that is: errors of reconstruction from 32 components."""

SEEDS = (5, 6, 7, 8, 9)
"""Fresh draws: 0 to 4 were looked at when CLAIMED was chosen."""

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


Shared = Callable[[str, int], erg.Fitted]
"""The model of this name and seed for all classes."""


def trained(name: str, known: Opened, seed: int, shared: Shared, folder: Path) -> erg.Fitted:
    """A model: the one of this seed for all, or one fitted on the normal images alone."""
    if "data" in MODELS[name]:
        return shared(name, seed)
    return erg.fit(
        run_of(MODELS[name], seed), Arrays(as_arrays(known)), folder / "run", observers=()
    )


def caltech(data: Path, name: str, seed: int, shared: Shared) -> dict[str, Any]:
    """AUROC and AUPR of every energy, by class."""
    # As sharp as the model wants them; one that has learned from larger images wants larger ones.
    side = shared(name, seed).encoder.image_size if "data" in MODELS[name] else 32
    opened = open_for(
        erg.build_encoder("pixels", side), str(data / "caltech101_128.parquet"), label="label"
    )
    found: dict[str, Any] = {}
    for wanted in CLASSES:
        known, asked = one_class(opened, wanted, seed)
        with tempfile.TemporaryDirectory() as folder:
            model = trained(name, known, seed, shared, Path(folder))
            seen = anomalies(model, asked, normal=known, label="label", normal_class=wanted)
        found[wanted] = told(with_product(seen) if name == "KMeans" else seen)
    return {"classes": found, "environment": environment()}


def tiles(data: Path, name: str, seed: int, shared: Shared) -> dict[str, Any]:
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


def with_product(seen: Anomalies) -> Anomalies:
    """The same and one energy more. Logarithms of energies add, whatever their scales."""
    both = seen.energies["energy"] * seen.energies["pixels, PCA"]
    return replace(seen, energies={**seen.energies, "energy x pixels, PCA": both})


def told(seen: Anomalies) -> dict[str, Any]:
    return {
        energy: {kind: asdict(score) for kind, score in scores.items()}
        for energy, scores in seen.judged().items()
    }


def measurements(seeds: list[int], models: list[str]) -> Iterator[tuple[str, str, int]]:
    """What is asked of which model, and with which seed."""
    for seed in seeds:
        for name in models:
            yield "Caltech-101", name, seed
            if MODELS[name].get("encoder") == "conv":
                yield "tiles", name, seed


def run() -> None:
    """Measure what is missing, write after each, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--only", choices=("Caltech-101", "tiles"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="for trials: elsewhere")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    if min(options.seeds) < min(SEEDS) and options.results == RESULTS:
        parser.error("CLAIMED was chosen on seeds 0 to 4: say where with --results")
    torch.set_num_threads(options.threads)
    done = json.loads(options.results.read_text()) if options.results.exists() else {}
    with tempfile.TemporaryDirectory() as place:

        def shared(name: str, seed: int) -> erg.Fitted:
            folder = Path(place) / f"{name} {seed}"
            if not folder.exists():
                file = str(options.data / MODELS[name]["data"])
                made, _ = default(Seen(3000, 128, False), data=file, seed=seed)
                erg.fit(made, out=folder, minutes=options.minutes, observers=())
            return erg.load(folder)

        for what, name, seed in measurements(options.seeds, options.models):
            taught = f", {options.minutes:g} minutes" if "data" in MODELS[name] else ""
            key = f"{what}; {name}{taught}; seed {seed}"
            if key not in done and options.only in (None, what):
                measure = caltech if what == "Caltech-101" else tiles
                done[key] = measure(options.data, name, seed, shared)
                write_atomically(options.results, json.dumps(done, indent=1).encode())
                print(key, flush=True)
    table(done)


def errors(done: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Mean 1 - AUROC over the classes of Caltech-101, by energy and seed."""
    found: dict[str, dict[str, float]] = {}
    for key, row in done.items():
        what, name, seed = key.split("; ")
        if what != "Caltech-101":
            continue
        classes = list(row["classes"].values())
        for energy in classes[0]:
            of_pixels = energy.startswith("pixels")
            # All see the same pixels but for those whose images are opened larger.
            if not of_pixels or name == "KMeans":
                label = energy if of_pixels else f"{name}, {energy}"
                wrong = statistics.mean(1 - each[energy]["auroc"]["value"] for each in classes)
                found.setdefault(label, {})[seed] = wrong
    return found


def claims(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is claimed, the bar, and what was measured (lowest to highest of the seeds)."""
    wrong, told = errors(done), list[tuple[str, str, str]]()
    for other, what in BESIDE.items():
        ours, theirs = wrong.get(CLAIMED, {}), wrong.get(other, {})
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            continue
        ratios = [ours[seed] / theirs[seed] for seed in seeds]
        ratio = sum(ours[seed] for seed in seeds) / sum(theirs[seed] for seed in seeds)
        held = "held" if ratio <= BAR else "missed"
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, n = {len(seeds)}"
        claim = f"1 - AUROC on Caltech-101, a class against the others: {CLAIMED} / {what}"
        told.append((claim, f"<= {BAR:g}", f"{ratio:.2f} ({spread}): {held}"))
    return told


def table(done: dict[str, Any]) -> None:
    """Mean 1 - AUROC over classes and seeds, in no order of merit; tiles; and what is claimed."""
    wrong = errors(done)
    if wrong:
        of_pixels = wrong.get("pixels, PCA")
        pca = statistics.mean(of_pixels.values()) if of_pixels else None
        print("| Caltech-101, six classes | 1 - AUROC | from | to | of PCA's |")
        print("|---|---|---|---|---|")
        for label, values in wrong.items():
            three = [f(values.values()) for f in (statistics.mean, min, max)]
            share = f"{three[0] / pca:.2f}" if pca else "-"
            print(f"| {label} | {' | '.join(f'{v:.4f}' for v in three)} | {share} |")
    print("\n| tiles | AUROC | AUPR of defective | AUROC of pixels |\n|---|---|---|---|")
    for key, found in done.items():
        what, name, seed = key.split("; ")
        if what == "tiles":
            for energy, scores in found["scores"].items():
                cells = [f"{scores[k]['value']:.3f}" for k in ("auroc", "aupr", "auroc_pixels")]
                print(f"| {name}, {energy}, {seed} | {' | '.join(cells)} |")
    print("\n| | bar | measured |\n|---|---|---|")
    for row in claims(done):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run()
