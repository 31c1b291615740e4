"""erg search, from the outside, on digits."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from erg.apply.embed import embed
from erg.commands.search import main
from erg.embeddings import Embeddings
from erg.encoders import build_encoder, save_encoder


@pytest.fixture(scope="module")
def digits(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, a table of 400 digits, their embeddings and one picture."""
    folder = tmp_path_factory.mktemp("digits")
    table = pq.read_table(shared_data / "mnist_test.parquet")
    pq.write_table(table.slice(0, 400), folder / "digits.parquet")
    nought = table["label"].to_pylist().index(0, 400)
    Image.open(io.BytesIO(table["image"][nought].as_py())).save(folder / "nought.png")
    save_encoder(build_encoder("pixels", 28, side=14), folder / "encoder")
    found = embed(folder / "encoder", str(folder / "digits.parquet"), label="label")
    found.save(folder / "vectors.parquet")
    return folder


@pytest.mark.parametrize("how", [[], ["--bits", "64"], ["--bits", "100", "--by", "jaccard"]])
def test_a_picture_finds_digits_like_it(digits: Path, how: list[str], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    arguments = [str(digits / "vectors.parquet"), str(digits / "nought.png")]
    model = ["--model", str(digits / "encoder"), "--k", "10", "--out", str(out)]
    assert main([*arguments, *model, *how]) == 0
    told = json.loads(out.read_text())["queries"]
    assert [each["query"] for each in told] == ["nought.png"]
    found = told[0]["found"]
    assert len(found) == 10
    name = "cosine" if not how else "jaccard" if "jaccard" in how else "hamming"
    order = [each[name] for each in found]
    assert order == sorted(order, reverse=name == "cosine")
    bank = Embeddings.load(digits / "vectors.parquet")
    assert bank.labels is not None
    labels = [bank.labels[each["id"]] for each in found]
    assert labels.count("0") >= 6  # one by chance


def test_an_item_is_asked_for_by_name_and_does_not_find_itself(
    digits: Path, tmp_path: Path
) -> None:
    bank = Embeddings.load(digits / "vectors.parquet")
    assert bank.paths is not None
    for bits in (["--bits", "32"], []):
        found = []
        for name in (bank.paths[7], "7"):
            out = tmp_path / "found.json"
            assert main([str(digits / "vectors.parquet"), name, "--out", str(out), *bits]) == 0
            found.append([e["id"] for e in json.loads(out.read_text())["queries"][0]["found"]])
        assert found[0] == found[1]
        assert len(found[0]) == 10
        assert 7 not in found[0]
    z = bank.vectors / np.linalg.norm(bank.vectors, axis=1, keepdims=True)
    assert found[0] == [i for i in np.argsort(-(z @ z[7]))[:11].tolist() if i != 7]


def test_vectors_of_zeros_and_ones_are_codes(tmp_path: Path, capsys) -> None:
    bits = (np.random.default_rng(0).random((30, 70)) < 0.3).astype(np.float32)
    Embeddings(bits, np.arange(30)).save(tmp_path / "codes.parquet")
    out = tmp_path / "found.json"
    assert main([str(tmp_path / "codes.parquet"), "3", "--k", "4", "--out", str(out)]) == 0
    assert "30 codes of 16 bytes" in capsys.readouterr().out
    found = json.loads(out.read_text())["queries"][0]["found"]
    far = np.abs(bits - bits[3]).sum(axis=1)
    assert [each["hamming"] for each in found] == sorted(far)[1:5]


def test_mistakes_are_told(digits: Path, tmp_path: Path) -> None:
    vectors = str(digits / "vectors.parquet")
    with pytest.raises(ValueError, match="no item 'nonsense'"):
        main([vectors, "nonsense"])
    save_encoder(build_encoder("pixels", 28, side=4), tmp_path)
    with pytest.raises(ValueError, match="48 values and the embeddings 588"):
        main([vectors, str(digits / "nought.png"), "--model", str(tmp_path)])
    with pytest.raises(ValueError, match="got --k 0"):
        main([vectors, "3", "--k", "0"])
    with pytest.raises(ValueError, match="--method would change nothing: without --model"):
        main([vectors, "3", "--method", "mine.py:Mine"])
    with pytest.raises(ValueError, match=r"--method would change nothing: .* is no run folder"):
        main([vectors, "3", "--model", str(tmp_path), "--method", "mine.py:Mine"])
    with pytest.raises(ValueError, match="there is no folder"):
        main([vectors, "3", "--out", str(tmp_path / "no" / "found.json")])
    with pytest.raises(ValueError, match="--bits -8"):
        main([vectors, "3", "--bits", "-8"])
    with pytest.raises(ValueError, match="--by jaccard compares codes"):
        main([vectors, "3", "--by", "jaccard"])
    bits = (np.random.default_rng(0).random((9, 70)) < 0.3).astype(np.float32)
    Embeddings(bits, np.arange(9)).save(tmp_path / "codes.parquet")
    with pytest.raises(ValueError, match="codes already, here of 70 bits"):
        main([str(tmp_path / "codes.parquet"), "3", "--bits", "32"])


def test_names_that_cannot_be_shown_are_escaped(tmp_path: Path, monkeypatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    paths = ["a.png", "\u56fe.png", "b.png"]
    Embeddings(vectors, np.arange(3), paths=paths).save(tmp_path / "e.parquet")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    out = tmp_path / "found.json"
    assert main([str(tmp_path / "e.parquet"), "0", "--out", str(out)]) == 0
    assert b"\\u56fe.png" in shown.getvalue()
    found = json.loads(out.read_text())["queries"][0]["found"]
    assert {each["path"] for each in found} == {"\u56fe.png", "b.png"}
