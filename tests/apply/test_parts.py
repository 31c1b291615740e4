"""Vectors in parts: by any number of processes, stopped and gone on with, every image once."""

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from erg.apply import parts
from erg.apply.embed import Embedder, embed, embedder
from erg.apply.parts import Parts, Shared, embed_to_file
from erg.cli import main
from erg.data.scenes import world
from erg.data.source import DataError, open_source
from erg.embeddings import Embeddings
from erg.encoders import build_encoder, load_encoder, save_encoder
from erg.train.fit import fit
from erg.train.fitted import load
from erg.train.preempt import Stopped
from erg.train.run import Run

SHARD = 64
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SHARD", SHARD)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pictures in three folders, every tenth broken, and of the second shard all."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(world(300, size=32).images):
        path = folder / f"{i // 100}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
        if i % 10 == 0 or SHARD <= i < 2 * SHARD:
            path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("model")
    save_encoder(build_encoder("conv", 16, width=4, stages=2), folder)
    return embedder(folder)


@pytest.fixture(scope="module")
def alone(model: Embedder, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    """What one uninterrupted process writes."""
    out = tmp_path_factory.mktemp("alone") / "e.parquet"
    before, parts.SHARD = parts.SHARD, SHARD
    assert embed_to_file(model, pictures, out, label="folder", max_skipped=0.5) is not None
    parts.SHARD = before
    assert [file.name for file in out.parent.iterdir()] == ["e.parquet"]
    return Embeddings.load(out)


def same(first: Embeddings, second: Embeddings) -> bool:
    return (
        np.array_equal(first.vectors, second.vectors)
        and np.array_equal(first.ids, second.ids)
        and np.array_equal(np.asarray(first.labels), np.asarray(second.labels))
        and first.paths == second.paths
    )


def test_parts_hold_every_image_once(
    alone: Embeddings, model: Embedder, pictures: Path, tmp_path: Path
) -> None:
    save_encoder(model.encoder, tmp_path)
    wanted = embed(tmp_path, pictures, label="folder", max_skipped=0.5)
    assert len(wanted) == 300 - 30 - 64 + 6
    assert np.array_equal(alone.ids, wanted.ids)
    np.testing.assert_allclose(alone.vectors, wanted.vectors, rtol=1e-5, atol=1e-6)
    assert alone.paths == wanted.paths
    assert alone.labels is not None
    assert alone.labels.tolist() == np.asarray(wanted.labels).tolist()
    assert {"model", "image_size", "data"} == alone.origin.keys()


class Counting:
    """In place of making a part: which were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[int] = []
        self.make = Parts._make
        monkeypatch.setattr(Parts, "_make", lambda *given: self(*given))

    def __call__(self, of: Parts, shard: int, count) -> None:
        self.made.append(shard)
        self.make(of, shard, count)


def test_stopped_it_goes_on_where_it_was(
    model: Embedder, pictures: Path, alone: Embeddings, tmp_path: Path, monkeypatch
) -> None:
    made = Counting(monkeypatch)
    out = tmp_path / "e.parquet"

    def ask(done: int, of: int) -> None:
        assert of == 300
        if done > 2 * SHARD:  # inside the third shard
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as stopped:
        embed_to_file(model, pictures, out, label="folder", max_skipped=0.5, progress=ask)
    assert stopped.value.code == 75
    assert str(stopped.value).startswith("stopped, with the vectors so far kept")
    assert made.made == [0, 1, 2]
    assert not out.exists()
    folder = tmp_path / "e.parquet.parts"
    (folder / "part-000000.parquet").write_bytes(b"damaged")
    made.made.clear()
    found = embed_to_file(model, pictures, out, label="folder", max_skipped=0.5)
    assert found == (len(alone), 8)
    assert made.made[0] == 0, "a damaged part is made again"
    assert 1 not in made.made, "a whole one is not"
    assert made.made[-2:] == [3, 4]
    assert same(Embeddings.load(out), alone)
    assert [file.name for file in tmp_path.iterdir()] == ["e.parquet"]


def test_parts_of_something_else_are_made_again(
    model: Embedder, pictures: Path, tmp_path: Path, monkeypatch
) -> None:
    first = Parts(model, open_source(pictures), tmp_path / "p", None)
    first.make()
    made = Counting(monkeypatch)
    Parts(model, open_source(pictures), tmp_path / "p", None).make()
    assert made.made == []
    Parts(model, open_source(pictures, label="folder"), tmp_path / "p", "folder").make()
    assert made.made == [0, 1, 2, 3, 4]
    fewer = sorted(pictures.rglob("*.png"))
    del fewer[200]  # the shards before are of the same items
    made.made.clear()
    other = Parts(model, open_source(fewer, label="folder"), tmp_path / "p", "folder")
    other.make()
    assert made.made == [3, 4]
    changed = copy.deepcopy(model.module)
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    made.made.clear()
    source = open_source(fewer, label="folder")
    Parts(replace(model, module=changed), source, tmp_path / "p", "folder").make()
    assert made.made == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="not what it should be"):
        Parts(model, open_source(pictures), tmp_path / "p", None).check(0.5)


def test_too_many_broken_pictures_are_an_error_and_the_parts_are_kept(
    model: Embedder, pictures: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "e.parquet"
    with pytest.raises(DataError, match=r"88 of 300 items .* more than the allowed 20%"):
        embed_to_file(model, pictures, out)
    made = Counting(monkeypatch)
    assert embed_to_file(model, pictures, out, max_skipped=0.3) == (212, 8)
    assert made.made == []
    broken = [pictures / "0" / "000.png", pictures / "0" / "010.png"]
    with pytest.raises(DataError, match="none of 2 listed files"):
        embed_to_file(model, broken, tmp_path / "none.parquet", max_skipped=1.0)


def test_the_command_says_what_it_made(pictures: Path, tmp_path: Path, capsys) -> None:
    save_encoder(build_encoder("conv", 16, width=4, stages=2), tmp_path / "model")
    out = str(tmp_path / "e.parquet")
    arguments = ["embed", str(tmp_path / "model"), str(pictures), "--out", out]
    assert main([*arguments, "--max-skipped", "0.5"]) == 0
    assert "212 vectors of 8 values" in capsys.readouterr().out
    assert main([*arguments[:-1], str(tmp_path / "absent" / "e.parquet")]) == 3
    assert "cannot be written" in capsys.readouterr().err


def test_processes_speak_through_their_device_where_the_encoder_has_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs speak through their own memory alone, and what has no weights is nowhere."""
    through: list[torch.device] = []

    def agree(flag: bool, device: torch.device) -> bool:
        through.append(device)
        return flag

    save_encoder(build_encoder("identity", 5), tmp_path / "identity")
    monkeypatch.setattr(parts.distributed, "agree", agree)
    source, meta = open_source(np.zeros((3, 5), dtype=np.float32)), torch.device("meta")
    Parts(embedder(tmp_path / "identity", meta), source, tmp_path / "a", None).make()
    Parts(embedder(tmp_path / "identity"), source, tmp_path / "b", None).make()
    assert through == [meta, torch.device("cpu")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    told = Run(
        method="SimCLR", encoder="conv", encoder_args={"width": 4, "stages": 2}, image_size=16,
        data="synthetic:120", batch=24, steps=2, precision="32",
    )  # fmt: skip
    return fit(told, out=tmp_path_factory.mktemp("runs") / "run").folder


def test_vectors_of_both_encoders_come_out_of_one_pass(run: Path, tmp_path: Path) -> None:
    from erg.apply.embed import open_for, vectors_of

    fitted, start = load(run), load_encoder(run / "encoder_start")
    shared = Shared(fitted, start, tmp_path / "vectors")
    opened = shared.open({"data": "synthetic:150"}, label="shape", tell=lambda _: None)
    assert opened is not None
    assert not (tmp_path / "vectors").exists()
    plain = open_for(fitted.encoder, "synthetic:150", label="shape")
    rows = np.array([149, 3, 70])
    method = fitted.method
    for module, embed_ in ((method, method.encode), (start, start)):
        found = vectors_of(embed_, module, start, opened["data"], rows)
        wanted = vectors_of(embed_, module, start, plain, rows)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert len(opened["data"].known) == 2


def child(*arguments: str) -> int:
    """What each of two processes does: a command with small shards, and a note of what it made."""
    parts.SHARD = SHARD
    torch.set_num_threads(1)
    make, made = Parts._make, []

    def noted(of: Parts, shard: int, count) -> None:
        made.append(shard)
        make(of, shard, count)

    Parts._make = noted
    code = main(arguments[1:])
    (Path(arguments[0]) / f"rank-{os.environ['RANK']}").write_text(json.dumps(made))
    return code


def in_two_processes(notes: Path, *arguments: str) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(Path(__file__)), str(notes), *arguments],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\n") <= 40
    return [json.loads((notes / f"rank-{rank}").read_text()) for rank in (0, 1)]


def test_two_processes_embed_as_one(
    model: Embedder, pictures: Path, alone: Embeddings, tmp_path: Path
) -> None:
    save_encoder(model.encoder, tmp_path / "model")
    out = tmp_path / "e.parquet"
    made = in_two_processes(
        tmp_path, "embed", str(tmp_path / "model"), str(pictures), "--out", str(out),
        "--label", "folder", "--max-skipped", "0.5",
    )  # fmt: skip
    assert made == [[0, 2, 4], [1, 3]]
    assert same(Embeddings.load(out), alone)
    assert pq.read_metadata(out).num_row_groups == 4, "one a shard with readable images"
    assert not (tmp_path / "e.parquet.parts").exists()


def test_two_processes_evaluate_as_one(run: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(run), "synthetic:200", "--label", "shape"]
    made = in_two_processes(tmp_path, *arguments)
    assert made == [[0, 2], [1, 3]]
    together = json.loads((run / "scores.json").read_text())
    assert not (run / "vectors").exists()
    assert main(arguments) == 0
    apart = json.loads((run / "scores.json").read_text())
    assert together["data"] == apart["data"] == "synthetic:200"
    assert [row["name"] for row in together["rows"]] == [row["name"] for row in apart["rows"]]
    for mine, theirs in zip(together["rows"], apart["rows"], strict=True):
        for kind, score in theirs["scores"].items():
            # One of 40 test images may fall on the other side of a tie.
            assert abs(mine["scores"][kind]["value"] - score["value"]) <= 1 / 40 + 1e-9
    assert together["n_train"] == apart["n_train"]
    assert together["rankme"] == pytest.approx(apart["rankme"], rel=1e-4)


if __name__ == "__main__":
    sys.exit(child(*sys.argv[1:]))


def test_a_folder_is_no_place_for_a_file(
    model: Embedder, pictures: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    made = Counting(monkeypatch)
    for out in (tmp_path, Path(".")):
        with pytest.raises(ValueError, match="is a folder"):
            embed_to_file(model, pictures, out)
    assert made.made == []
    save_encoder(model.encoder, tmp_path / "model")
    command = ["embed", str(tmp_path / "model"), str(pictures), "--out", str(tmp_path)]
    assert main(command) == 2
    assert "is a folder. Name a file with --out." in capsys.readouterr().err
    assert main([*command, "--method", "mine.py:Mine"]) == 2
    assert "--method would change nothing" in capsys.readouterr().err
