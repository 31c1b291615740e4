"""erg layers: a linear probe at every depth."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    import numpy as np

    from erg.apply.embed import Opened
    from erg.apply.layers import Layer

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.grid { stroke: #ddd } .line { fill: none; stroke-width: 2 } .band { opacity: 0.18 }
.s0 { stroke: #1763b0; fill: #1763b0 } .s1 { stroke: #b4540a; fill: #b4540a }
.line.s0, .line.s1 { fill: none } .band { stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .grid { stroke: #444 }
  .s0 { stroke: #6fb1f2; fill: #6fb1f2 } .s1 { stroke: #f0a35e; fill: #f0a35e }
}
"""


def main(arguments: Sequence[str]) -> int:
    return tyro.cli(layers_, args=list(arguments), prog="erg layers")


def layers_(
    run: Path,
    data: str | None = None,
    /,
    *,
    label: str,
    test: str | None = None,
    values: int = 2048,
    images: int = 5000,
    out: Path | None = None,
    method: str | None = None,
    device: str | None = None,
) -> int:
    """Fit a linear probe on every layer of an encoder, trained and before training.

    Layers are averaged down to about the same number of values, so that depth is not confounded
    with width. Features of pretext tasks are often best before the last layer.

    Args:
        run: the run folder.
        data: images with labels to fit the probes on; the run's own if not given.
        label: where labels are found: a parquet column, or `folder`.
        test: images to test on; without, data are split 80 / 20 by content.
        values: most values of a layer that a probe sees.
        images: most images to fit on, and to test on.
        out: the chart to write (SVG), and beside it the numbers (JSON); layers.svg in the run
            folder if not given.
        method: repeats a method given by path, which is code.
        device: cpu, cuda or mps; what is there if not given.
    """
    from dataclasses import asdict, replace

    from erg.apply.embed import known_already, open_for
    from erg.apply.layers import layers
    from erg.commands.options import beside, where
    from erg.commands.show import compiling, tell
    from erg.data.splits import split
    from erg.durable import write_atomically
    from erg.encoders import load_encoder
    from erg.evaluate.intervals import clear, difference
    from erg.train.fitted import load

    place = where(device)
    fitted = load(run, method=method, device=str(place))
    path = out or run / "layers.svg"
    numbers = beside(path, ".json", "the numbers are")
    chosen = data if data is not None else fitted.run.data
    if not chosen:
        raise ValueError("the run was made from data in memory. Name the data to probe on.")
    compiling()
    opened = open_for(fitted.encoder, chosen, label=label, tell=tell)
    other = opened if test is None else open_for(fitted.encoder, test, label=label, tell=tell)
    rows, asked = split(opened.manifest) if test is None else (opened.rows, other.rows)

    opened, other = (
        replace(each, rows=_known(each, chosen, images))
        for each, chosen in ((opened, rows), (other, asked))
    )
    leaked = int(known_already(opened, opened.rows, other, other.rows).sum())
    if leaked:
        tell(f"{leaked:,} of {len(other.rows):,} test images are also among those to fit on.")
    lacking = sorted({*other.names(other.rows)} - {*opened.names(opened.rows)})
    if lacking:
        tell(f"Not among the classes to fit on, so always wrong: {', '.join(lacking[:8])}.")
    found = {
        name: layers(encoder, opened, opened.rows, other, other.rows, values=values)
        for name, encoder in (
            ("trained", fitted.encoder),
            ("before training", load_encoder(fitted.folder / "encoder_start").to(place)),
        )
    }
    for name, curve in found.items():
        tell(f"{name}:")
        for layer in curve:
            s = layer.accuracy
            tell(
                f"  {layer.name:<12}{100 * s.value:5.1f} % ({100 * s.low:.1f} to "
                f"{100 * s.high:.1f}) from {layer.values} values"
            )
    last = found["trained"][-1]
    # Chosen without the test images: the best of many on them would owe some of it to luck.
    best = max(found["trained"], key=lambda layer: (layer.validation, layer is last))
    contents = other.manifest.hashes[other.rows]
    gap = difference(best.right, last.right, groups=contents)
    surely = clear(gap, best.right, last.right, groups=contents)
    value, low, high = (100 * part for part in (gap.value, gap.low, gap.high))
    text = "Best of the trained one, by images the probes were not tested on: "
    if best is last:
        text += "its output."
    else:
        text += (
            f"{best.name}, {'clearly' if surely else 'not clearly'} better than the output "
            f"({value:+.1f} points, {low:+.1f} to {high:+.1f})."
        )
    tell(text)
    title = f"{fitted.run.method}: linear probe at every depth"
    write_atomically(path, curves(found, title).encode())
    about = {
        "format": 1,
        "n_train": len(opened.rows),
        "n_test": len(other.rows),
        "n_leaked": leaked,
        "best": {"name": best.name, "ahead_of_output": {**asdict(gap), "clear": surely}},
        "layers": {
            name: [
                {
                    "name": each.name,
                    "values": each.values,
                    "accuracy": asdict(each.accuracy),
                    "validation": each.validation,
                }
                for each in curve
            ]
            for name, curve in found.items()
        },
    }
    write_atomically(numbers, json.dumps(about, indent=1).encode())
    tell(f"The chart is {path}.")
    return 0


def _known(opened: "Opened", rows: "np.ndarray", most: int) -> "np.ndarray":
    """Rows with a label, spread evenly if they are too many.

    Raises:
        ValueError: fewer than two are left.
    """
    from erg.apply.embed import evenly

    assert opened.labels is not None
    kept = rows[opened.labels[rows] >= 0]
    if min(len(kept), most) < 2:
        raise ValueError(
            f"{len(kept)} of {len(rows)} images have a label, and at most {most} are wanted: a "
            "probe needs two at least to fit on and to test on. Look at --label and --images."
        )
    return evenly(kept, most)


def curves(found: "dict[str, list[Layer]]", title: str) -> str:
    """Accuracy over depth as an SVG file that looks right in light and dark, with intervals."""
    names = [layer.name for layer in next(iter(found.values()))]
    width, height, left, top, bottom = 520, 320, 48, 46, 40
    scores = [layer.accuracy for curve in found.values() for layer in curve]
    low = max(0.0, math.floor(20 * min(s.low for s in scores)) / 20)
    high = min(1.0, math.ceil(20 * max(s.high for s in scores)) / 20)
    if low == high:  # all are right, or all are wrong
        low, high = max(0.0, low - 0.05), min(1.0, high + 0.05)

    def x(i: int) -> float:
        return left + 20 + i * (width - left - 50) / max(1, len(names) - 1)

    def y(value: float) -> float:
        return height - bottom - (value - low) / (high - low) * (height - top - bottom)

    parts = [f'<text x="{left}" y="18">{escape(title)}</text>']
    for i in range(5):
        level = low + i * (high - low) / 4
        parts.append(f'<path class="grid" d="M{left} {y(level):.1f}H{width - 10}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(level) + 4:.1f}" text-anchor="end">'
                     f"{100 * level:.0f} %</text>")  # fmt: skip
    for i, name in enumerate(names):
        parts.append(f'<text x="{x(i):.1f}" y="{height - bottom + 18}" text-anchor="middle">'
                     f"{escape(name)}</text>")  # fmt: skip
    for k, (name, curve) in enumerate(found.items()):
        scores = [layer.accuracy for layer in curve]
        upper = [f"{x(i):.1f} {y(s.high):.1f}" for i, s in enumerate(scores)]
        lower = [f"{x(i):.1f} {y(s.low):.1f}" for i, s in enumerate(scores)]
        middle = [f"{x(i):.1f} {y(s.value):.1f}" for i, s in enumerate(scores)]
        parts.append(f'<path class="band s{k}" d="M{"L".join([*upper, *lower[::-1]])}Z"/>')
        parts.append(f'<path class="line s{k}" d="M{"L".join(middle)}"/>')
        parts += [f'<circle class="s{k}" cx="{at.split()[0]}" cy="{at.split()[1]}" r="3"/>'
                  for at in middle]  # fmt: skip
        across = left + 150 * k
        parts.append(f'<path class="line s{k}" d="M{across} 32h18"/>')
        parts.append(f'<text x="{across + 24}" y="36">{escape(name)}</text>')
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{e.name} {100 * e.accuracy.value:.1f} %" for e in curve)
        for name, curve in found.items()
    )
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" '
        f'aria-label="{escape(f"{title}. {spoken}")}"><style>{STYLE}</style>{"".join(parts)}</svg>'
    )
