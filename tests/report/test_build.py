import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erg.report import build
from erg.report.build import write_report

PARTS = {
    "scores.json": "not been evaluated",
    "manifest.parquet": "no list of the files",
    "events.jsonl": "nothing was logged",
    "timing.jsonl": "Speed was not recorded",
    "pictures/map.json": "There is no map",
    "pictures/neighbours.json": "There are no neighbours",
    "pictures/views.json": "no pictures of the views",
    "pictures/energies.json": "There are no energies",
}


class Page(HTMLParser):
    """Elements, attributes and texts of a page, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self.inside in ("script", "style") else self.texts).append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> Any:
        return json.loads(next(s for s in self.scripts if s.startswith("{")))


def read(path: Path) -> tuple[str, Page]:
    html = path.read_text("utf-8")
    return html, Page(html)


def test_everything_is_on_the_page(run_folder: Path) -> None:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    html, page = read(path)
    text = " ".join(page.texts)
    for told in (
        "Worth it", "+18.1", "50.2 to 52.2", "SimCLR", "resnet18", "…/birds/2024",
        "400 steps of 256 images", "2 of 62 files were skipped", "The file is empty.",
        "No warnings", "60 images, placed by t-SNE", "share the label of their query",
        "AUROC 0.988 (0.978 to 0.998)", "Exact duplicates", "adamw, lr 0.001", "view 2",
    ):  # fmt: skip
        assert told in text, told
    assert re.findall(r"<section id=\"(\w+)\"", html) == [
        "scores", "run", "curves", "health", "map", "neighbours", "views", "energies", "data",
    ]  # fmt: skip
    assert re.findall(r'<p class="absent">(.*?)</p>', html) == ["The map needs JavaScript."]
    assert len(page.data["x"]) == 60
    assert sum(size for _, size in page.data["classes"]) == 60
    assert len(page.named("svg")) > 60


def test_policy_and_nonce(run_folder: Path) -> None:
    html, page = read(write_report(run_folder))
    (policy,) = [m for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    (nonce,) = {s["nonce"] for s in page.named("script") if "nonce" in s}
    assert nonce
    assert len(nonce) >= 20
    rules = dict(rule.split(" ", 1) for rule in (policy["content"] or "").split("; "))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'nonce-{nonce}'",
        "script-src": f"'nonce-{nonce}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert html.index("Content-Security-Policy") < html.index("<style")
    assert page.named("style") == [{"nonce": nonce}]
    other = read(write_report(run_folder))[1]
    assert {s["nonce"] for s in other.named("script") if "nonce" in s} != {nonce}


@pytest.mark.parametrize("which", ["run_folder", "hostile"])
def test_nothing_is_loaded_and_nothing_runs_but_ours(
    which: str, request: pytest.FixtureRequest
) -> None:
    html, page = read(write_report(request.getfixturevalue(which)))
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in ("href", "src", "action", "xlink:href", "srcset", "data", "poster"):
                assert (value or "").startswith(("#", "data:image/webp;base64,", "data:,")), value
    assert [set(s) for s in page.named("script")] == [{"type", "id"}, {"nonce"}]
    assert len(page.named("style")) == 1
    assert html.count("</script") == 2
    assert html.count("</style") == 1


def test_hostile_names_are_text(hostile: Path, payloads: tuple[str, ...]) -> None:
    assert len(set(payloads)) == len(payloads) == 20
    html, page = read(write_report(hostile))
    text = "".join(page.texts)
    for payload in payloads:
        shown = payload.replace("\0", "\ufffd")
        assert shown in text, payload
    assert page.data["path"] == [*payloads, *payloads]
    assert {name for name, _ in page.data["classes"]} == set(payloads)
    assert "49.png" not in html
    data = next(s for s in page.scripts if s.startswith("{"))
    assert not set(data) & set("<>&\u2028\u2029\0")
    assert data.isascii()


def test_home_folders_and_secrets_are_not_on_the_page(run_folder: Path) -> None:
    html, _ = read(write_report(run_folder))
    for private in ("anna", "/home/", "hf_secret", "HF_TOKEN", str(run_folder.parent)):
        assert private not in html, private


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_left_out_with_a_sentence(run_folder: Path, name: str) -> None:
    (run_folder / name).unlink()
    text = " ".join(read(write_report(run_folder))[1].texts)
    assert PARTS[name] in text


def test_run_json_alone_gives_a_page(run_folder: Path) -> None:
    for path in run_folder.rglob("*.*"):
        if path.name != "run.json":
            path.unlink()
    text = " ".join(read(write_report(run_folder))[1].texts)
    assert "Not judged yet" in text
    assert all(sentence in text for sentence in PARTS.values())


def test_minimal_and_strange_run_json(run_folder: Path) -> None:
    for run in ({"format": 1}, {"format": 1, "method": None, "optimiser": [], "steps": "x"}):
        (run_folder / "run.json").write_text(json.dumps(run))
        assert "What was run" in read(write_report(run_folder))[0]


def test_truncated_events_still_give_curves(run_folder: Path) -> None:
    path = run_folder / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    html, _ = read(write_report(run_folder))
    assert 'aria-label="Loss. ' in html


def test_warnings_are_told(run_folder: Path) -> None:
    with (run_folder / "events.jsonl").open("a") as events:
        for step in (410, 420):
            line = {"step": step, "kind": "health", "std": 0.01, "warning": f"Collapse at {step}."}
            events.write(json.dumps(line) + "\n")
    html, page = read(write_report(run_folder))
    text = " ".join(page.texts)
    assert "Steps 410 to 420" in text
    assert "Collapse at 420." in text
    assert "No warnings" not in text
    assert 'class="mark"' in html


def test_points_that_are_nowhere_keep_their_number(make_run: Callable[..., Path]) -> None:
    xy = np.random.default_rng(0).normal(size=(60, 2))
    xy[5] = np.nan
    data = read(write_report(make_run(xy=xy)))[1].data
    assert data["x"][5] is data["y"][5] is None
    x = np.array([v for v in data["x"] if v is not None])
    y = np.array([v for v in data["y"] if v is not None])
    assert max(np.ptp(x), np.ptp(y)) == pytest.approx(1)
    scale = np.ptp(np.delete(xy[:, 0], 5)) / np.ptp(x)
    assert np.ptp(np.delete(xy[:, 1], 5)) / np.ptp(y) == pytest.approx(scale, rel=1e-3)


def test_two_thousand_thumbnails_stay_below_six_megabytes(make_run: Callable[..., Path]) -> None:
    # Noise is the worst case for WebP: about 4 kB a thumbnail, so the sheet is compressed again.
    names = [f"a/rather/long/folder/name/for/an/image/{i:06d}.jpeg" for i in range(2000)]
    run = make_run(names=names, label=False)
    assert (run / "pictures/thumbnails.webp").stat().st_size > build.MAX_SHEET
    assert write_report(run).stat().st_size < 6_000_000


def test_the_old_report_stays_when_writing_fails(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page.html"
    assert write_report(run_folder, out) == out
    old = out.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(run_folder, out)
    assert out.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "run-1"]


def test_the_report_needs_neither_torch_nor_numba(run_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from erg.report.build import write_report; "
        "write_report(Path(sys.argv[1])); print([m for m in sys.modules if m in "
        "('torch', 'numba', 'timm', 'sklearn', 'lightning_fabric')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_figures_stand_beside_those_before_training(run_folder: Path) -> None:
    file = run_folder / "scores.json"
    told = json.loads(file.read_text())
    told |= {"before": {"rankme": 61.25, "nmi": 0.07}, "n_seen": 1234}
    file.write_text(json.dumps(told))
    text = " ".join(" ".join(read(write_report(run_folder))[1].texts).split())
    assert "before training 61.25" in text
    assert "before training 0.07" in text
    assert "1,234 of which the encoder was trained on without labels" in text
