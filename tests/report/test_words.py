import json
from pathlib import Path

import pytest

from erg.report import words
from erg.report.read import read_record
from erg.report.record import Interval, Record, Scores
from erg.report.words import shared, short_path


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("a/b/c/d.png", "a/b/c/d.png"),
        ("/home/anna/photos/2024/cat.png", "…/2024/cat.png"),
        ("/home/anna/photos", "~/photos"),
        ("/home/anna", "~"),
        ("/home/anna smith/my photos/x y.png", "~/my photos/x y.png"),
        ("/Users/anna/a/b/c", "…/b/c"),
        ("/root/x", "~/x"),
        ("/data/imagenet", "/data/imagenet"),
        ("/mnt/disk/project/photos/train", "…/photos/train"),
        ("C:\\Users\\Anna Smith\\Pictures\\cats", "~/Pictures/cats"),
        ("D:\\work\\secret\\cats\\train", "…/cats/train"),
        ("file:///home/anna/x.png", "~/x.png"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("/", "/"),
        ("", ""),
        ("</script>", "</script>"),
        ("javascript:alert(1)", "javascript:alert(1)"),
    ],
)
def test_short_path(path: str, short: str) -> None:
    assert short_path(path) == short


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot open '/home/anna smith/x y/z.png': no", "cannot open '~/x y/z.png': no"),
        ("cannot open /home/anna/x.png: no", "cannot open ~/x.png: no"),
        ("data='/home/anna/a/b/c',", "data='…/b/c',"),
        ("local-dir:/home/anna/enc", "local-dir:~/enc"),
        ("read C:\\Users\\Anna Smith\\x.png", "read ~/x.png"),
        ("see file:///home/anna/x", "see ~/x"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("80 / 20 by content, 1/2 or a/b/c", "80 / 20 by content, 1/2 or a/b/c"),
        ("</script>", "</script>"),
    ],
)
def test_paths_inside_text_are_shortened(text: str, told: str) -> None:
    assert shared(text) == told


def scored(record: Record, better: bool | None, text: str, primary: str = "knn20") -> Record:
    old = record.scores
    assert old is not None
    changed = Scores(**{**vars(old), "better": better, "text": text, "primary": primary})
    return Record(**{**vars(record), "scores": changed})


def test_verdict_in_plain_words(run_folder: Path) -> None:
    record = read_record(run_folder)
    found = words.verdict(record)
    assert found.headline == "Worth it"
    assert found.lead.startswith("20-NN accuracy 51.2 %, better than")
    assert [gap.points for gap in found.gaps] == ["+18.1", "+12.5", "+15.8"]
    assert found.gaps[0].told == "51.2\u00a0% against 33.1\u00a0%"
    worse = words.verdict(scored(record, False, "Not worth it: no better than PCA."))
    assert {gap.kind for gap in found.gaps} == {"ahead"}
    assert (worse.headline, worse.lead) == ("Not worth it", "No better than PCA.")
    unsure = words.verdict(scored(record, False, "Not clearly worth it: it depends."))
    assert unsure.headline == "Not clearly worth it"
    other = words.verdict(scored(record, False, "Some words: of another kind."))
    assert (other.headline, other.lead) == ("Not worth it", "Some words: of another kind.")
    linear = words.verdict(scored(record, None, "", "linear"))
    assert [gap.points for gap in linear.gaps] == ["+18.1", "+12.5"]
    assert (linear.headline, linear.score) == ("Worth it", "Linear probe")


def test_a_lower_score_is_said_to_be_lower(run_folder: Path) -> None:
    record = read_record(run_folder)
    assert record.scores is not None
    rows = dict(record.scores.rows)
    rows["encoder"], rows["PCA"] = rows["PCA"], rows["encoder"]
    changed = Scores(**{**vars(record.scores), "rows": rows, "better": None, "text": ""})
    found = words.verdict(Record(**{**vars(record), "scores": changed}))
    assert found.headline == "Not worth it"
    assert [(gap.points, gap.kind) for gap in found.gaps][1] == ("−12.5", "behind")


@pytest.mark.parametrize(
    ("value", "better", "kind"),
    [
        (0.60, False, "ahead"), (0.45, False, "unsure"), (0.40, False, "unsure"),
        (0.30, False, "behind"), (0.45, True, "ahead"), (0.40, True, "unsure"),
    ],
)  # fmt: skip
def test_a_gap_is_clear_or_unsure(run_folder: Path, value: float, better: bool, kind: str) -> None:
    record = read_record(run_folder)
    assert record.scores is not None
    rows = {
        "encoder": {"knn20": Interval(value, value - 0.05, value + 0.05)},
        "PCA": {"knn20": Interval(0.42, 0.38, 0.46)},
    }
    changed = Scores(**{**vars(record.scores), "rows": rows, "better": better})
    (gap,) = words.verdict(Record(**{**vars(record), "scores": changed})).gaps
    assert gap.kind == kind


def test_without_scores_nothing_is_claimed(run_folder: Path) -> None:
    (run_folder / "scores.json").unlink()
    found = words.verdict(read_record(run_folder))
    assert found.headline == "Not judged yet"
    assert "not been evaluated" in found.lead


def test_what_was_run(run_folder: Path) -> None:
    facts = dict(words.run_facts(read_record(run_folder)))
    assert facts["Method"] == "SimCLR (temperature 0.5, width Linear (start 1, end 2))"
    assert facts["Data"] == "…/birds/2024"
    assert facts["Training"] == "400 steps of 256 images, about 1,707 passes over the data"
    assert facts["Optimiser"] == "adamw, lr 0.001, weight_decay 0.0001"
    assert facts["Time"] == "2 minutes"
    assert facts["Speed"] == "828 images/s (median)"


def test_the_environment_tells_no_secrets(run_folder: Path) -> None:
    found = words.environment(read_record(run_folder).run)
    assert found == [("python", "3.11.7"), ("torch", "2.14.1")]
    run = {"environment": {"hostname": "h", "user": "anna", "API_KEY": "k", "tmp": "/home/anna/t"}}
    assert words.environment(run) == [("tmp", "~/t")]


def test_warnings_of_one_kind_are_told_once() -> None:
    texts = [
        "Collapse: spread 0.01.",
        "Collapse: spread 0.005.",
        "Rank: 1.2.",
        "Collapse: spread 0.",
    ]
    record = Record(folder=Path(), run={}, warnings=tuple(enumerate(texts)))
    assert words.warnings(record) == [
        ("Steps 0 to 1", "Collapse: spread 0.005."),
        ("Step 2", "Rank: 1.2."),
        ("Step 3", "Collapse: spread 0."),
    ]


def test_python_is_what_the_run_says(run_folder: Path) -> None:
    run = read_record(run_folder).run
    text = words.python(run)
    compile(text, "report", "exec")
    assert "erg.Linear(start=1, end=2)" in text
    assert "optimiser=erg.Optimiser(name='adamw', lr=0.001, weight_decay=0.0001)" in text
    assert "anna" not in text
    assert words.python({**run, "python": "erg.fit(erg.Run())"}) == "erg.fit(erg.Run())"
    long = {"optimiser": {"type": "Optimiser", **{f"number_{i}": i for i in range(9)}}}
    compile(words.python(long), "report", "exec")
    assert max(map(len, words.python(long).splitlines())) < 60
    infinite = words.python({"plan": {"type": "float", "value": "inf"}})
    assert "plan=float('inf')" in infinite


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(16.4, "16 seconds"), (600, "10 minutes"), (12_000, "3 h 20 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_without_labels_the_headline_is_about_invariance(make_run) -> None:
    record = read_record(make_run(label=False))
    for better, said, headline in (
        (True, "Worth it: recall@1 80 %.", "More invariant"),  # as older files say it
        (True, "More invariant: recall@1 80 %.", "More invariant"),
        (False, "Not more invariant: recall@1 8 %.", "Not more invariant"),
        (False, "Not clearly more invariant: recall@1 8 %.", "Not clearly more invariant"),
        (False, "", "Not more invariant"),
    ):
        found = words.verdict(scored(record, better, said, "recall_colour"))
        assert found.headline == headline
        assert "orth it" not in found.lead


def test_gaps_are_as_clear_as_the_paired_differences_of_the_file(run_folder: Path) -> None:
    file = run_folder / "scores.json"
    told = json.loads(file.read_text())
    told["verdict"]["better"] = False
    told["verdict"]["gaps"] = {
        "before training": {"value": 0.18, "low": -0.01, "high": 0.2, "clear": False},
        "PCA": {"value": 0.12, "low": 0.01, "high": 0.2, "clear": True},
        "raw pixels": {"value": 0.15, "low": -0.2, "high": -0.1, "clear": False},
    }
    file.write_text(json.dumps(told))
    found = words.verdict(read_record(run_folder))
    assert [gap.kind for gap in found.gaps] == ["unsure", "ahead", "behind"]
    told["verdict"]["gaps"]["raw pixels"]["behind"] = False  # of too few images
    file.write_text(json.dumps(told))
    found = words.verdict(read_record(run_folder))
    assert [gap.kind for gap in found.gaps] == ["unsure", "ahead", "unsure"]


def test_neighbours_are_called_by_how_many_voted(run_folder: Path) -> None:
    file = run_folder / "scores.json"
    told = json.loads(file.read_text())
    told["voters"] = {"knn20": 20, "knn200": 64}
    file.write_text(json.dumps(told))
    scores = read_record(run_folder).scores
    assert scores is not None
    assert words.metric(scores, "knn20") == words.METRICS["knn20"]
    title, hint = words.metric(scores, "knn200")
    assert (title, hint[:24]) == ("64 nearest neighbours", "The same with 64 voters:")
    assert words.metric(scores, "linear") == words.METRICS["linear"]
