"""What the report says about a record, in plain words and without anything private in it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from erg.report.charts import percent
from erg.report.record import Interval, Manifest, Record, Scores

METRICS = {
    "knn20": ("20 nearest neighbours", "Share of test images whose 20 nearest training images "
              "vote for the right label."),
    "knn200": ("200 nearest neighbours", "The same with 200 voters: rewards large, clean groups."),
    "linear": ("Linear probe", "Share a linear classifier gets right when it is given only the "
               "vectors."),
    "recall": ("Finds its other crop", "Share of images whose nearest vector, among all others, "
               "is another crop of the same image. Measures invariance, not usefulness."),
    "recall_colour": ("Finds its recoloured crop", "The same with colours changed as well. "
                      "Measures invariance, not usefulness."),
}  # fmt: skip
BASELINES = {
    "before training": "against the same encoder before training",
    "PCA": "against principal components of pixels",
    "raw pixels": "against raw pixels",
}
HEALTH = {
    "std": ("Spread", "About 1 when directions are spread evenly, 0 when all images embed alike."),
    "rank": ("Effective rank", "How many directions the embeddings really use."),
    "auroc": ("Energy AUROC", "Chance that a matched pair has the lower energy: 0.5 is guessing."),
    "knn": ("kNN accuracy", "At most 20 nearest neighbours among the held-out images."),
}
PAIRINGS = {
    "views": "Matched: two views of one image. Mismatched: views of two images.",
    "itself": "Matched: the visible and the hidden patches of one image. Mismatched: the hidden "
    "patches come from another image.",
    "order": "Matched: tiles and their order. Mismatched: another order.",
    "tasks": "Matched: what every task asks about an image and the right answers. Mismatched: "
    "wrong ones.",
    "turn": "Matched: an image and the quarter turn it was given. Mismatched: another turn.",
    "alone": "Matched: images. Mismatched: images with independent or shuffled pixels.",
}
FIGURES = {
    "rankme": ("RankMe", "effective rank of the test vectors"),
    "alignment": ("Alignment", "mean squared distance of two views; lower is closer"),
    "uniformity": ("Uniformity", "lower is more evenly spread on the sphere"),
    "nmi": ("Clusters: NMI", "k-means against the labels; 1 is perfect, chance is above 0"),
    "ami": ("Clusters: AMI", "the same, adjusted for chance; 1 is perfect, 0 is chance"),
    "ari": ("Clusters: ARI", "agreement of pairs with the labels; 1 is perfect, 0 is chance"),
}

HEADLINES = ("Worth it", "Not worth it", "Not clearly worth it")
INVARIANT = ("More invariant", "Not more invariant", "Not clearly more invariant")
"""Without labels nothing is said about worth: finding an image again is invariance."""

_SECRET = re.compile(r"token|secret|passw|api.?key|credential|cookie|^(user|host)", re.IGNORECASE)
_HOME = re.compile(r"^(?:file://)?(?:/(?:home|Users)/[^/]+|/root|[A-Za-z]:[\\/]Users[\\/][^\\/]+)")
_ABSOLUTE = re.compile(r"^(?:file://)?(?:/|~|[A-Za-z]:[\\/]|\\\\)")
_WITHIN = re.compile(
    r"""(?P<quote>["'])(?:file://)?(?P<quoted>(?:/|[A-Za-z]:[\\/]|\\\\)[^"'\n]+)(?P=quote)
    | (?P<windows>(?<![\w])[A-Za-z]:[\\/](?!/)[^\n"'<>|:*?]+)
    | (?P<posix>(?:file://|(?<![\w./~\\-]))/(?!/)[^\s"'<>|,;)\]}]+)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Gap:
    """How far the encoder is ahead of one baseline."""

    points: str
    against: str
    told: str
    kind: str  # ahead, behind, or unsure


@dataclass(frozen=True)
class Verdict:
    """The first thing the page says."""

    headline: str
    lead: str
    score: str
    gaps: tuple[Gap, ...]


def short_path(path: str) -> str:
    """A path as text that can be shared: no home folder, of absolute paths the last two parts."""
    path = re.sub(r"(?<=://)[^/\s@]+@", "", path)
    if not _ABSOLUTE.match(path):
        return path
    bare, at_home = _HOME.subn("", path)
    parts = [part for part in re.split(r"[\\/]+", bare.removeprefix("file://")) if part != "~"]
    parts = [part for part in parts if part and not re.fullmatch(r"[A-Za-z]:", part)]
    if len(parts) > 2:
        return "…/" + "/".join(parts[-2:])
    return "/".join(["~" if at_home or path.startswith("~") else "", *parts]) or "/"


def shared(text: str) -> str:
    """Text in which every absolute path is shortened by `short_path`."""

    def replace(found: re.Match[str]) -> str:
        quote = found["quote"] or ""
        return quote + short_path(found["quoted"] or found["windows"] or found["posix"]) + quote

    return _WITHIN.sub(replace, re.sub(r"(?<=://)[^/\s@]+@", "", text))


def environment(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the environment without what tells who ran it."""
    known = run.get("environment")
    pairs = known.items() if isinstance(known, dict) else ()
    return [(str(k), shared(plain(v))) for k, v in pairs if not _SECRET.search(str(k))]


def plain(value: Any) -> str:
    """A value of run.json for people: lists without brackets, data types like calls."""
    if isinstance(value, dict):
        inner = ", ".join(f"{k} {plain(v)}" for k, v in value.items() if k != "type")
        return f"{value['type']} ({inner})" if "type" in value else inner
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def verdict(record: Record) -> Verdict:
    """Better than the baselines by how much, not worth it, or not judged."""
    scores = record.scores
    if scores is None or not scores.rows:
        lead = record.missing.get("scores.json", "There are no scores to judge by.")
        return Verdict("Not judged yet", lead, "", ())
    kind = primary(scores)
    if kind is None:
        return Verdict("Not judged yet", "The encoder itself has no score.", "", ())
    better = scores.better
    gaps = _gaps(scores, kind)
    if better is None:
        better = bool(gaps) and all(gap.kind == "ahead" for gap in gaps)
    named = INVARIANT if kind.startswith("recall") else HEADLINES
    headline = named[0] if better else named[1]
    lead = shared(scores.text)
    first, found, rest = lead.partition(": ")
    if found and first in (*HEADLINES, *INVARIANT):
        lead = rest[:1].upper() + rest[1:]
        place = (HEADLINES if first in HEADLINES else INVARIANT).index(first)
        headline = named[place]
    return Verdict(headline, lead, metric(scores, kind)[0], gaps)


def metric(scores: Scores, kind: str) -> tuple[str, str]:
    """Title and explanation of a score; with as many neighbours as voted, in a small set fewer."""
    title, hint = METRICS.get(kind, (kind, ""))
    named, voted = kind.removeprefix("knn"), str(scores.voters.get(kind, ""))
    if kind.startswith("knn") and voted and voted != named:
        return title.replace(named, voted), hint.replace(named, voted)
    return title, hint


def primary(scores: Scores) -> str | None:
    """The score the verdict rests on: the one it names, or the first the encoder has."""
    mine = scores.rows.get("encoder", {})
    order = [scores.primary, "knn20", "knn200", "linear", "recall_colour", "recall", *mine]
    return next((kind for kind in order if kind in mine), None)


def _gaps(scores: Scores, kind: str) -> tuple[Gap, ...]:
    """Gaps to every baseline, as clear as the verdict says, which knows the paired differences.

    Of files that keep no differences: clear where the verdict says so or the intervals are apart.
    """
    mine = scores.rows["encoder"][kind]
    gaps: list[Gap] = []
    for name, against in BASELINES.items():
        other = scores.rows.get(name, {}).get(kind)
        if other is not None:
            points = 100 * (mine.value - other.value)
            told = f"{percent(mine.value, 1)} against {percent(other.value, 1)}"
            ahead = mine.low > other.high or (bool(scores.better) and points > 0)
            behind = mine.high < other.low
            if name in scores.gaps and kind == scores.primary:
                ahead = scores.gaps[name].clear
                behind = scores.gaps[name].behind
            how = "ahead" if ahead else "behind" if behind else "unsure"
            gaps.append(Gap(f"{points:+.1f}".replace("-", "−"), against, told, how))
    return tuple(gaps)


def interval(value: Interval) -> str:
    return f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def run_facts(record: Record) -> list[tuple[str, str]]:
    """Terms and descriptions of what was run."""
    run, facts = record.run, []

    def fact(term: str, text: Any) -> None:
        if text not in (None, "", "None"):
            facts.append((term, shared(str(text))))

    def named(name: str) -> str:
        inner = plain(run.get(f"{name}_args") or {})
        return f"{run.get(name, '')}" + (f" ({inner})" if inner else "")

    fact("Method", named("method"))
    fact("Encoder", named("encoder"))
    fact("Image size", f"{run['image_size']} px" if "image_size" in run else "")
    fact("Started from", run.get("init") or "random weights")
    fact("Data", short_path(str(run.get("data") or "")))
    steps, batch, images = run.get("steps"), run.get("batch"), _images(record)
    if isinstance(steps, int) and isinstance(batch, int):
        passes = f", about {_round(steps * batch / images)} passes over the data" if images else ""
        fact("Training", f"{steps:,} steps of {batch:,} images{passes}")
    optimiser = {k: v for k, v in _dict(run.get("optimiser")).items() if k not in ("type", "name")}
    fact(
        "Optimiser",
        f"{_dict(run.get('optimiser')).get('name', '')}, {plain(optimiser)}".strip(", "),
    )
    fact("Views", views(run.get("plan")))
    fact("Seed", run.get("seed"))
    fact("Time", _time(record))
    speed = record.timing.get("images_per_second")
    if speed is not None:
        fact("Speed", f"{np.nanmedian(speed.value):,.0f} images/s (median)")
    return facts


def views(plan: Any) -> str:
    """How many views of an image a run was told to make; the Python below it says which."""
    if not isinstance(plan, dict):
        return "as the method asks"
    main, local = (plan.get(kind) for kind in ("main", "local"))
    main, local = (len(of) if isinstance(of, list) else 0 for of in (main, local))
    return f"{main} views as this run says" + (f", {local} small ones" if local else "")


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _time(record: Record) -> str:
    if "seconds" in record.timing:
        return duration(float(record.timing["seconds"].value[-1]))
    minutes = record.run.get("minutes")
    return duration(60 * minutes) if isinstance(minutes, int | float) else ""


def _images(record: Record) -> int:
    return record.manifest.total - record.manifest.skipped if record.manifest else 0


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def data_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Terms and descriptions of the files that were read."""
    read = manifest.total - manifest.skipped
    facts = [
        ("Images read", f"{read:,} of {manifest.total:,}"),
        ("Size", f"{manifest.size / 1e6:,.1f} MB encoded"),
    ]
    if manifest.height and manifest.width:
        (low_h, mid_h, high_h), (low_w, mid_w, high_w) = manifest.height, manifest.width
        text = f"{mid_h} × {mid_w} px"
        if (low_h, low_w) != (high_h, high_w):
            text = f"{low_h} × {low_w} to {high_h} × {high_w} px, median {mid_h} × {mid_w}"
        facts.append(("Height × width", text))
    facts.append(("Exact duplicates", f"{manifest.duplicates:,}"))
    if manifest.labels:
        facts.append(("Labels", f"{len(manifest.labels):,} (training never saw them)"))
    return facts


def warnings(record: Record) -> list[tuple[str, str]]:
    """Health warnings: the same text at several looks in a row is told once, with its steps."""
    merged: list[tuple[int, int, str]] = []
    for step, text in record.warnings:
        # Warnings differ in the numbers they quote; they are the same warning all the same.
        if merged and _kind(merged[-1][2]) == _kind(text):
            merged[-1] = (merged[-1][0], step, text)
        else:
            merged.append((step, step, text))
    return [
        (f"Step {a:,}" if a == b else f"Steps {a:,} to {b:,}", shared(text))
        for a, b, text in merged
    ]


def _kind(text: str) -> str:
    return re.sub(r"[\d.]+", "", text)


def python(run: dict[str, Any]) -> str:
    """The Python that does the same."""
    if run.get("python"):
        return shared(str(run["python"]))
    skipped = ("format", "environment", "minutes", "python")
    given = {k: v for k, v in run.items() if k not in skipped and v not in (None, "", {}, [])}
    lines = "".join(f"    {name}={_literal(value, 80)},\n" for name, value in given.items())
    data = "" if run.get("data") else ", images"
    return shared(f"import erg\n\nrun = erg.Run(\n{lines})\nerg.fit(run{data})")


def _literal(value: Any, width: int = 10**9) -> str:
    """A value as Python; data types of more than so many characters over several lines."""
    if isinstance(value, dict) and value.get("type") == "float":
        return f"float({value.get('value')!r})"
    if isinstance(value, dict) and "type" in value:
        inner = [f"{k}={_literal(v)}" for k, v in value.items() if k != "type"]
        line = f"erg.{value['type']}({', '.join(inner)})"
        if len(line) <= width:
            return line
        return f"erg.{value['type']}(\n        " + ",\n        ".join(inner) + ",\n    )"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "(" + ", ".join(_literal(v) for v in value) + ("," if len(value) == 1 else "") + ")"
    return repr(value)
