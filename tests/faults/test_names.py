"""File names that nobody would choose: whole in the manifest, in the parquet and on the page."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erg.apply.embed import Embedder
from erg.apply.parts import embed_to_file
from erg.data.manifest import Manifest, build_manifest
from erg.data.source import open_source
from erg.embeddings import Embeddings
from erg.encoders import build_encoder
from erg.report.build import write_report

NAMES = {
    b"new\nline.png": "new\nline.png",
    b"bytes-\xff\xfe.png": r"bytes-\xff\xfe.png",
    b"x" * 251 + b".png": "x" * 251 + ".png",
    "\u202egnp.\u200fexe\u202c.png".encode(): "\u202egnp.\u200fexe\u202c.png",
    "e\u0301.png".encode(): "e\u0301.png",
    "\u00e9.png".encode(): "\u00e9.png",
    b"tab\t\x1b[31m\x07.png": "tab\t\x1b[31m\x07.png",
    b'=1+1,"a".png': '=1+1,"a".png',
}
"""As they are stored, and as they are told: bytes that are no text are spelled out."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Every name twice: a good image, and in a folder a file that is none."""
    root = tmp_path / "photos"
    (root / "broken").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name in NAMES:
        try:
            with open(os.path.join(os.fsencode(root), name), "wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
        except OSError:
            pytest.skip("this file system takes no such names")
        with open(os.path.join(os.fsencode(root), b"broken", name), "wb") as file:
            file.write(b"no image")
    return root


class Cells(HTMLParser):
    """Texts of the cells of a page's tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th"):
            self.inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def test_odd_names_come_through_whole(photos: Path, tmp_path: Path) -> None:
    told = sorted(NAMES.values())
    broken = sorted(f"broken/{name}" for name in told)
    run = tmp_path / "run"
    run.mkdir()
    source = open_source(photos, label="folder")
    build_manifest(source, max_skipped=0.5).save(run / "manifest.parquet")
    manifest = Manifest.load(run / "manifest.parquet")
    assert sorted(manifest.paths) == sorted([*told, *broken])
    assert sorted(manifest.paths[i] for i in manifest.ok) == told

    encoder = build_encoder("conv", 16, width=4, stages=2).eval()
    model = Embedder("conv", encoder, encoder, encoder)
    out = tmp_path / "e.parquet"
    assert embed_to_file(model, photos, out, max_skipped=0.5) == (len(NAMES), 8)
    paths = Embeddings.load(out).paths
    assert paths is not None
    assert sorted(paths) == told

    (run / "run.json").write_text(json.dumps({"format": 1}))
    cells = Cells(write_report(run).read_text("utf-8")).found
    assert {name for name in broken if name in cells} == set(broken)
