"""Export: a folder that timm loads without erg or, with a file of plain torch, torch alone."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from erg.durable import read_json, write_atomically
from erg.encoders import load_encoder, save_encoder

MODEL = '''"""The exported encoder in plain torch: model.safetensors is all it needs.

    from model import load
    encoder = load("model.safetensors")     # normalised images in, vectors out
"""

import torch
from safetensors.torch import load_file
from torch import nn

{code}


def load(path):
    model = build()
    model.load_state_dict(load_file(path))
    return model.eval()
'''

CODE = {
    "conv": """
class Residual(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return x + self.inside(x)


def conv(a, b, stride):
    return [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.{layer}()]


class Encoder(nn.Module):
    def __init__(self, width, stages, blocks, whole):
        super().__init__()
        widths = [3, *[width * 2**i for i in range(stages)]]
        residual = [0] * (stages - len(blocks)) + blocks
        layers = []
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            layers += conv(a, b, 1 if whole and i == 0 else 2)
            layers += [Residual(nn.Sequential(*conv(b, b, 1))) for _ in range(residual[i])]
        self.network = nn.Sequential(*layers)

    def forward(self, data):  # [b 3 h w] -> [b d]
        return self.network(data).mean(dim=(2, 3))


def build():
    return Encoder(width={width}, stages={stages}, blocks={blocks}, whole={whole})""",
    "mlp": """
class Encoder(nn.Module):
    def __init__(self, features, width, depth, dim):
        super().__init__()
        widths = [features, *[width] * depth]
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.{layer}()]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], dim))

    def forward(self, data):  # [b features] -> [b d]
        return self.network(data)


def build():
    return Encoder({image_size}, width={width}, depth={depth}, dim={dim})""",
    "pixels": """
class Encoder(nn.Module):
    def forward(self, data):  # [b 3 h w] -> [b d]
        x = nn.functional.adaptive_avg_pool2d(data, min({side}, {image_size})).flatten(1)
        if {contrast}:
            x = nn.functional.normalize(x - x.mean(dim=1, keepdim=True), dim=1)
        return x


def build():
    return Encoder()""",
    "identity": """
class Encoder(nn.Module):
    def forward(self, data):  # [b d] -> [b d]
        return data


def build():
    return Encoder()""",
}


def export(run: Path, out: Path) -> Path:
    """Write the encoder of a run to a folder: config.json, model.safetensors, a model card, sums.

    Args:
        run: the run folder.
        out: where to; made if it is not there.

    Raises:
        ValueError: the run has no trained encoder yet.
    """
    if not (run / "encoder" / "model.safetensors").is_file():
        raise ValueError(f"{run} has no trained encoder yet. Finish the run first, with --resume.")
    encoder = load_encoder(run / "encoder")
    if not encoder.exportable and encoder.name not in CODE:
        raise ValueError(
            f"{encoder.name} has no form without erg. Use {run}/encoder with erg.load_encoder."
        )
    save_encoder(encoder, out)
    if not encoder.exportable:
        values = {**encoder.arguments, "image_size": encoder.image_size}
        values["layer"] = {"relu": "ReLU", "silu": "SiLU"}.get(values.get("activation", ""))
        code = CODE[encoder.name].format(**values).strip()
        write_atomically(out / "model.py", MODEL.format(code=code).encode())
    preprocess = {
        "format": 1,
        "size": encoder.image_size,
        "crop": "largest centred square",
        "interpolation": "bilinear, antialiased",
        "scale": "[0, 1]",
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }
    write_atomically(out / "preprocess.json", json.dumps(preprocess, indent=2).encode())
    write_atomically(out / "README.md", card(run, encoder.exportable).encode())
    names = sorted(p.name for p in out.iterdir() if p.is_file() and p.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((out / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    write_atomically(out / "SHA256SUMS", "".join(sums).encode())
    return out


def card(run: Path, timm_loads_it: bool) -> str:
    """The model card: what it was trained on and how, how well it does, how to load it."""
    told = read_json(run / "run.json")
    scores: dict[str, Any] = {}
    if (run / "scores.json").exists():
        scores = read_json(run / "scores.json")
    lines = [
        "---", "library_name: timm" if timm_loads_it else "library_name: torch", "---", "",
        f"# {told['encoder']} trained with {told['method']}", "",
        f"Learned without labels by erg {version('erg')}: {told['steps']} steps of "
        f"{told['batch']} images at {told['image_size']} pixels, seed {told['seed']}.", "",
        "## Load it", "",
    ]  # fmt: skip
    if timm_loads_it:
        lines += [
            "```python",
            "import timm",
            'encoder = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()',
            "```",
            "",
            "Needs timm only. Mean, standard deviation and size are in `config.json`, where "
            "`timm.data.resolve_model_data_config` reads them.",
        ]
    else:
        lines += [
            "```python",
            "from model import load",
            'encoder = load("model.safetensors")',
            "```",
            "",
            "timm cannot build this encoder, so `model.py` beside this page holds it in plain "
            "torch. Mean, standard deviation and size are in `preprocess.json`.",
        ]
    lines += ["", "## How well it does", ""]
    if scores:
        lines += [scores["verdict"]["text"], "", *_table(scores)]
    else:
        lines += ["Not evaluated. `erg evaluate` compares it with the encoder before training."]
    start = str(told.get("init") or "random weights")
    start = Path(start).name if Path(start).is_absolute() else start  # folders are private
    lines += [
        "", "## Limits", "",
        f"Started from {start}. Scores hold for images like those it was evaluated on. The "
        "licence of the images decides what the weights may be used for.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(scores: dict[str, Any]) -> list[str]:
    kinds = list(dict.fromkeys(kind for row in scores["rows"] for kind in row["scores"]))
    lines = [f"| | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for row in scores["rows"]:
        cells = [row["scores"].get(kind) for kind in kinds]
        shown = [
            f"{100 * c['value']:.1f} ({100 * c['low']:.1f} to {100 * c['high']:.1f})" if c else ""
            for c in cells
        ]
        lines.append(f"| {row['name']} | {' | '.join(shown)} |")
    return lines
