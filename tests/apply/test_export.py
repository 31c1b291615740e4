"""An export is loaded by timm, or by plain torch, in a process that knows no erg."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erg.apply.export import export
from erg.encoders import build_encoder, load_encoder, save_encoder
from erg.train.folder import RunFolder
from erg.train.run import Run

ENCODERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet18": ("resnet18", 64, {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
    "vit": ("vit_tiny_patch16_224", 48, {"depth": 2, "embed_dim": 48}),
    "conv": ("conv", 32, {"width": 8}),
    "conv, all arguments": (
        "conv", 32, {"width": 8, "stages": 2, "blocks": [1], "whole": True, "activation": "silu"},
    ),
    "mlp": ("mlp", 7, {"width": 16}),
    "mlp, all arguments": ("mlp", 7, {"width": 16, "depth": 3, "dim": 5, "activation": "silu"}),
    "pixels": ("pixels", 32, {"side": 4, "contrast": True}),
    "pixels, small images": ("pixels", 8, {}),
    "identity": ("identity", 5, {}),
}  # fmt: skip

WITH_TIMM = """
import sys, numpy, timm, torch
encoder = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
config = timm.data.resolve_model_data_config(encoder)
assert "erg" not in sys.modules
x = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], encoder(x).detach().numpy())
print(tuple(config["input_size"]), tuple(config["mean"]), tuple(config["std"]))
"""
WITH_TORCH = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, torch
from model import load
assert "erg" not in sys.modules and "timm" not in sys.modules
x = torch.from_numpy(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], load(sys.argv[1] + "/model.safetensors")(x).detach().numpy())
"""


def run_folder(path: Path, name: str) -> tuple[Path, torch.nn.Module, torch.Tensor]:
    """A run folder with a trained-looking encoder, and an input for it."""
    kind, size, arguments = ENCODERS[name]
    torch.manual_seed(0)
    encoder = build_encoder(kind, size, **arguments)
    shape = (3, size) if kind in ("mlp", "identity") else (3, 3, size, size)
    encoder.train()(torch.randn(shape))  # moves the running averages away from their start
    encoder.eval()
    folder = RunFolder(path)
    folder.write_run(Run(method="SimCLR", encoder=kind, image_size=size).to_json())
    save_encoder(encoder, folder.encoder)
    return path, encoder, torch.randn(shape)


@pytest.mark.parametrize("name", ENCODERS)
def test_another_process_gets_the_same_bits(name: str, tmp_path: Path) -> None:
    run, encoder, x = run_folder(tmp_path / "run", name)
    out = export(run, tmp_path / "out")
    np.save(tmp_path / "x.npy", x.numpy())
    code = WITH_TIMM if encoder.exportable else WITH_TORCH
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), encoder(x).detach().numpy())
    if encoder.exportable:
        size = encoder.image_size
        assert done.stdout.strip() == f"{(3, size, size)} {encoder.mean} {encoder.std}"
    again = load_encoder(out)
    assert torch.equal(again(x), encoder(x))


@pytest.mark.parametrize("name", ["resnet18", "conv"])
def test_the_card_says_how_to_load_it_and_sums_hold(name: str, tmp_path: Path) -> None:
    run, encoder, _ = run_folder(tmp_path / "run", name)
    out = export(run, tmp_path / "out")
    text = (out / "README.md").read_text()
    assert ("timm.create_model" in text) == encoder.exportable
    assert ("model.py" in text) == (not encoder.exportable)
    assert str(tmp_path) not in text
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, file = line.split("  ")
        assert hashlib.sha256((out / file).read_bytes()).hexdigest() == digest


def test_a_folder_that_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"erg": {}}', '{"erg": {"name": "os"}}'):
        (tmp_path / "config.json").write_text(content)
        (tmp_path / "model.safetensors").write_bytes(b"\x00" * 16)
        with pytest.raises(ValueError, match=r"is damaged|holds no encoder|no encoder is called"):
            load_encoder(tmp_path)
