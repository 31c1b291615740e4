"""The figures of the course, drawn from models that are trained while you wait.

A figure is a class: its fields are the numbers, `compute` trains and measures, `facts` are those
that the tests check and `draw` makes the picture. Only drawing imports matplotlib.

    from erg import landscape
    wells = landscape.compute("wells")
    landscape.save(wells, "wells.png", theme="dark")
"""

import difflib
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erg.landscape.draw import Figure

FIGURES = {
    "wells": ("planes.Wells", "F1: k-means on a spiral, an energy with exactly k wells"),
    "slices": ("planes.Slices", "F2: three y2 for one y1, all of them found"),
    "topography": ("descents.Topography", "F3: a poor energy, corruption, kick and descent"),
    "contrastive": ("descents.Contrastive", "F3: contrastive divergence while it trains"),
    "travel": ("denoisers.Travel", "F4: where a denoising autoencoder moves points, and how far"),
    "score": ("denoisers.Score", "F4: the same field beside the score of the blurred data"),
    "queries": ("planes.Queries", "T07: completion of y2 from y1, projection on the manifold"),
    "training": ("descents.Training", "energies F(y) before and after, by --method and --world"),
    "inference": ("angles.Inference", "F5: finding the latent of an ellipse, in z and in y"),
    "free-energy": ("angles.FreeEnergies", "F6: F_beta from cold to warm, before and after"),
    "horn": ("angles.Horn", "F7: ellipses that depend on x, before and after training"),
    "denoising": ("restoring.Denoising", "F8, F25: first-layer kernels, noise, inpainting"),
    "blend": ("restoring.Blend", "F9: two digits blended, and what an autoencoder makes of it"),
    "latent": ("codes.Latent", "F10: samples, interpolation and codes of a variational one"),
    "atoms": ("atoms.Atoms", "F11: atoms and filters of sparse coding"),
    "permutations": ("permutations.Permutations", "F14: jigsaw and PIRL by number of orders"),
    "neighbours": ("codes.Neighbourhoods", "F19: nearest neighbours by three encoders"),
    "capacity": ("capacities.Capacity", "a latent that holds too much: F low everywhere; by heart"),
    "collapse": ("embeddings.Collapse", "F20: a joint embedding collapses; Sinkhorn's marginals"),
    "views": ("embeddings.ManyViews", "F23: augmentations of a photograph, and 75 % of it hidden"),
    "roll": ("manifolds.Roll", "F25: a rolled-up sheet, by PCA and by an autoencoder"),
    "reduction": ("codes.Reduction", "F25: scree, biplot, and four maps of the same digits"),
    "traversal": ("codes.Traversal", "F25: what the decoder makes of a plane of codes"),
    "speech": ("signals.Speech", "F25: spectrograms of made voices, noisy, denoised and clean"),
    "overlay": ("signals.Overlay", "F25: text and holes over pictures, before and after"),
    "anomalies": ("restoring.Anomalies", "F25: errors from lowest to highest, and the ROC curve"),
    "leaderboard": ("leaderboard.Leaderboard", "F25: a leaderboard of methods on digits"),
}
"""Where each figure is, and what it shows."""


def find(name: str) -> "type[Figure]":
    """A figure by name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(FIGURES)}."
        raise ValueError(f"no figure is called {name!r}. {hint}")
    module, kind = FIGURES[name][0].split(".")
    return getattr(importlib.import_module(f"erg.landscape.{module}"), kind)


def compute(name: str, **options: Any) -> "Figure":
    """Train and measure what a figure shows.

    Args:
        name: of the figure.
        options: seed, and what else its `compute` takes: method, world, data.

    Raises:
        ValueError: no such figure, or it has no such option.
    """
    kind: Any = find(name)
    known = inspect.signature(kind.compute).parameters
    for option in options:
        if option not in known:
            raise ValueError(
                f"figure {name} has no option {option!r}. It has {', '.join(known)}. Leave it out."
            )
    return kind.compute(**options)


def save(figure: "Figure", path: str | Path, *, theme: str = "light", dpi: int = 160) -> Path:
    """Draw a figure into a file, .png, .svg or .pdf.

    Args:
        figure: what `compute` gave.
        path: of the file, which is replaced.
        theme: light or dark.
        dpi: pixels per inch of a PNG.

    Raises:
        ValueError: matplotlib is missing, the theme or the ending of the file is unknown.
    """
    from erg.landscape.draw import render

    return render(figure, Path(path), theme, dpi)
