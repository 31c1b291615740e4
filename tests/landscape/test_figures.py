"""What each picture shows, as numbers; and that each is drawn, light and dark."""

import functools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erg import landscape
from erg.landscape import (
    atoms,
    codes,
    denoisers,
    descents,
    embeddings,
    leaderboard,
    permutations,
    signals,
    worlds,
)
from erg.landscape.draw import THEMES, Figure, in_words, sheet, stretched
from erg.landscape.fields import complete, energy_of, grid
from erg.landscape.learn import learn, method

SHORT: dict[str, dict[str, Any]] = {
    "contrastive": {"steps": 160},
    "travel": {"steps": 1200},
    "score": {"steps": 700},
    "training": {"steps": 300},
    "horn": {"steps": 700},
    "denoising": {"steps": 500},
    "blend": {"steps": 1000},
    "latent": {"steps": 400},
    "atoms": {"steps": 100, "most": 16},
    "roll": {"steps": 1000},
    "speech": {"steps": 40},
    "overlay": {"steps": 40, "side": 24},
    "leaderboard": {"steps": 300},
    "neighbours": {"steps": 500},
    "reduction": {"steps": 300},
    "traversal": {"steps": 500},
    "anomalies": {"steps": 400},
    "capacity": {"steps": 2000},
    "collapse": {"steps": 120},
    "permutations": {"most": 2, "steps": 200},
    "views": {"side": 64},
}
"""Trained less than for a lecture."""


@functools.cache
def figure(name: str) -> Figure:
    return landscape.compute(name, **SHORT.get(name, {}))


def facts(name: str) -> dict[str, float]:
    return figure(name).facts()


def test_f1_has_as_many_wells_as_prototypes_all_at_zero() -> None:
    found = facts("wells")
    assert found["wells"] == found["prototypes"] == 20
    assert found["largest F at a well"] < 1e-10
    assert found["largest distance from a well to its prototype"] < 1e-4
    wells: Any = figure("wells")
    # Nowhere else is it zero: away from prototypes F is the squared distance to the nearest.
    gaps = wells.where.points.numpy()[:, None] - wells.prototypes[None]
    exact = (gaps**2).sum(axis=2).min(axis=1).reshape(wells.where.shape)
    assert np.allclose(wells.levels, exact, atol=1e-5)


def test_f2_finds_three_answers_where_least_squares_has_one() -> None:
    found = facts("slices")
    assert found["minima of F(y1, .), up to 6 above the lowest"] == 3
    assert found["largest distance from a true y2 to a minimum"] < 0.08
    shown: Any = figure("slices")
    mean = found["mean of the true y2, which least squares would answer"]
    assert np.abs(shown.truth - mean).min() > 0.2
    level = np.interp(mean, shown.line, shown.along_line)
    assert level > shown.answers.energy.max() + 3


def test_f3_kicks_end_lower_than_they_start_and_data_lie_higher() -> None:
    found = facts("topography")
    assert found["wells"] == 2
    assert found["largest rise of F on a way down"] <= 0
    assert (
        found["mean F where they end, to be pushed up"]
        < found["mean F of the data they left, to be pushed down"]
        < found["mean F where the ways start"]
    )
    shown: Any = figure("topography")
    assert np.linalg.norm(shown.points - shown.too_low, axis=1).min() > 0.7
    i, j = np.abs(shown.where.y - shown.too_low[1]), np.abs(shown.where.x - shown.too_low[0])
    # Low where there are no data: lower than at most of them.
    assert shown.levels[i.argmin(), j.argmin()] < np.median(shown.of_starts)


def test_f3_contrastive_divergence_raises_what_is_far_from_data() -> None:
    found = facts("contrastive")
    untrained = found["F far from the data less F near them, untrained"]
    assert found["F far from the data less F near them, trained"] > untrained + 0.5
    ends = found["distance of the ends from the data, trained"]
    assert ends < 0.5 * found["distance of the ends from the data, untrained"]


def test_f4_moves_points_to_the_curve_and_stands_still_halfway() -> None:
    found = facts("travel")
    beside = found["mean travel a quarter of the way to the next arm"]
    assert beside == pytest.approx(0.25 * worlds.RADIUS / worlds.TURNS, rel=0.35)
    assert found["mean travel of the data"] < 0.25 * beside
    assert found["mean travel on the ridge between two arms"] < 0.4 * beside
    assert found["share of the way to the next arm where the ridge is"] == pytest.approx(
        0.5, abs=0.07
    )
    shown: Any = figure("travel")
    curve = worlds.spiral_at(torch.linspace(0, 1, 2000)).numpy()
    before, after = (
        np.linalg.norm(points[:, None] - curve[None], axis=2).min(axis=1).mean()
        for points in (shown.given, shown.made)
    )
    assert after < 0.5 * before


def test_f4_the_field_is_the_score() -> None:
    found = facts("score")
    assert found["cosine of the field and the score, at new points"] > 0.95
    assert found["ratio of their lengths"] == pytest.approx(1, abs=0.1)
    shown: Any = figure("score")
    at = shown.where.points
    assert np.allclose(shown.exact, worlds.mixture_score(at, 0.3), atol=1e-5)
    assert not np.allclose(shown.exact, worlds.mixture_score(at, 0.0), rtol=0.1)


def test_halfway_between_arms() -> None:
    t = torch.tensor([0.3])
    middle = denoisers.outwards(t, 0.5)
    here, there = worlds.spiral_at(t), worlds.spiral_at(t + 0.5)
    assert float((middle - here).norm()) == pytest.approx(float((middle - there).norm()))


def test_f5_gradient_and_search_find_the_same_latent() -> None:
    found = facts("inference")
    by_gradient = found["E(y_23, z) found by gradient"]
    assert by_gradient <= found["least E(y_23, z) of all 48 angles"] + 1e-6
    assert by_gradient < 0.05 * found["E(y_23, z) at the start"]
    assert found["F_inf in the middle, finite"] == pytest.approx(1.5**2, rel=0.05)
    shown: Any = figure("inference")
    assert shown.coarse.shape == (425, 2)
    assert shown.levels.min() >= 0


def test_f6_free_energies_go_from_the_minimum_to_the_mean() -> None:
    found = facts("free-energy")
    assert found["|F_beta - min| at beta = 10^5"] < 1e-4
    assert found["|F_beta - mean| at beta = 10^-5"] < 1e-3
    assert found["radius along y1, trained"] == pytest.approx(worlds.RADII[0], abs=0.05)
    assert found["radius along y2, trained"] == pytest.approx(worlds.RADII[1], abs=0.05)
    shown: Any = figure("free-energy")
    for family in shown.families:  # from cold to hot F_beta rises everywhere
        assert (np.diff(family, axis=0) >= -1e-5).all()
    assert np.allclose(shown.weights.sum(axis=1), 1)
    assert shown.weights[2].max() < 0.5 * shown.weights[0].max()  # the middle cannot decide


def test_f7_training_finds_the_horn() -> None:
    found = facts("horn")
    assert found["mean F after"] < 0.05 * found["mean F before"]
    assert found["largest relative error of a radius"] < 0.35


def test_t07_all_completions_and_the_nearest_prototype() -> None:
    found = facts("queries")
    shown: Any = figure("queries")
    c, w = shown.known, shown.prototypes
    energies = (c - w[:, 0, None]) ** 2 + (w[None, :, 1] - w[:, 1, None]) ** 2
    wins = w[energies.argmin(axis=0) == np.arange(len(w)), 1]
    assert found["completions of y1"] == len(wins) >= 3
    assert np.sort(shown.answers.y2).tolist() == pytest.approx(np.sort(wins).tolist(), abs=1e-4)
    assert found["largest distance from a projection to the nearest prototype"] < 1e-3


@pytest.mark.parametrize("name", ["KMeans", "GaussianMixture", "DenoisingAutoencoder"])
def test_training_lowers_the_energy_of_the_data_below_that_of_the_rest(name: str) -> None:
    found = landscape.compute("training", method=name, world="spiral", steps=300).facts()
    assert found["after: mean F of the data"] < found["after: mean F of the map"]
    before, after = (
        found[f"{when}: share of the map below the data's F"] for when in ("before", "after")
    )
    assert after < before
    assert after < 0.3


NEURAL = (
    "ContrastiveDivergence", "MaximumLikelihood", "NoiseContrastiveEstimation", "ScoreMatching",
    "RBM", "BinaryAutoencoder",
)  # fmt: skip


@pytest.mark.parametrize("name", [*descents.ARGUMENTS, *NEURAL])
def test_every_method_with_an_energy_of_its_own_has_a_landscape(name: str) -> None:
    shown: Any = landscape.compute("training", method=name, world="mixture", steps=12)
    assert np.isfinite(shown.before).all()
    assert np.isfinite(shown.after).all()
    assert not np.allclose(shown.before, shown.after)


def test_a_method_that_compares_two_has_no_landscape() -> None:
    with pytest.raises(ValueError, match="SimSiam compares an x with a y"):
        descents.untrained("SimSiam", 0)


def test_f8_restores_pixels_better_than_inpainting_that_knows_which() -> None:
    found = facts("denoising")
    lost, ours, told = (
        found[f"squared error of lost pixels, {how}"]
        for how in ("as they are", "autoencoder", "biharmonic")
    )
    assert ours < told < lost
    trained = found["squared error of reconstructions, trained"]
    assert trained < 0.4 * found["squared error of reconstructions, untrained"]


def test_f9_halfway_blends_change_most() -> None:
    found = facts("blend")
    assert found["squared change halfway"] > 1.1 * found["squared change of digits"]
    shown: Any = figure("blend")
    middle, ends = (shown.blends[rows].mean(axis=0) for rows in ([7, 8], [0, -1]))
    assert np.allclose(middle, ends, atol=1e-5)
    own = ((shown.made - shown.blends) ** 2).mean(axis=(1, 2))  # each with its own reconstruction
    assert np.allclose(own, shown.of_one, atol=1e-5)


def test_f10_codes_gather_by_class_and_samples_look_like_digits() -> None:
    found = facts("latent")
    shown: Any = figure("latent")
    assert shown.epochs == (0, 4, 40)  # 10 steps of 128 of 1,347 images
    same = found["neighbours of the same class, trained"]
    assert same > found["neighbours of the same class, untrained"] + 0.03
    noise = found["distance from uniform noise to it"]
    assert found["distance from a sample to the nearest digit"] < 0.6 * noise


def test_f11_few_atoms_explain_much_and_have_norm_one() -> None:
    found = facts("atoms")
    assert found["largest |norm of an atom - 1|"] < 1e-4
    assert found["active share of codes of held-out digits"] < 0.3
    assert found["variance of them explained"] > 0.6
    assert found["active share of codes of patches"] < 0.1
    assert found["variance of patches explained"] > 0.3
    tuned = found["energy at one frequency, atoms of photographs"]
    assert tuned > 1.3 * found["energy at one frequency, noise"]
    one, many = (
        found[f"variance of larger patches explained, {many}"]
        for many in ("1 filter", "16 filters")
    )
    assert many > one + 0.1
    assert found["active share of the maps of 16 filters"] < 0.05
    # What stands elsewhere is another atom, but the same filter.
    atom, filter = (
        found[f"likeness to the nearest other at any shift, {kind}"]
        for kind in ("atoms", "filters")
    )
    assert filter < atom - 0.05
    moved = np.zeros((2, 5, 5))
    moved[0, 1, 1] = moved[0, 1, 2] = moved[1, 3, 2] = moved[1, 3, 3] = 1.0
    assert atoms.repeated(moved) == pytest.approx(1)
    moved[1] = 0
    moved[1, 0, 0] = 1.0
    assert atoms.repeated(moved) == pytest.approx(0.5**0.5)
    wave = np.cos(2 * np.pi * (np.arange(8)[:, None] * 2 + np.arange(8)) / 8)[None]
    assert atoms.tuned(wave) == pytest.approx(1)
    assert atoms.tuned(np.eye(8)[:1, None] * np.eye(8)[0, :, None]) < 0.1  # a point: all of them


def test_f14_chosen_permutations_are_farther_apart_than_random_ones() -> None:
    found = facts("permutations")
    assert found["least Hamming distance of two, chosen far apart"] == 9
    far = permutations.closest(permutations.far_orders(9, 30).numpy())
    assert far > permutations.closest(permutations.shuffles(30, 0))
    # Two orders, and PIRL with every one as well.
    probes = [value for name, value in found.items() if name.startswith("linear probe")]
    assert len(probes) == 4
    assert min(probes) > 0.8
    shown: Any = figure("permutations")
    assert shown.pirl[-1] > max(shown.jigsaw[0], shown.untrained) + 0.01
    rows = permutations.shuffles(12, 0)
    assert {tuple(sorted(row)) for row in rows.tolist()} == {tuple(range(9))}
    naive = min(
        sum(a != b for a, b in zip(p, q, strict=True))
        for i, p in enumerate(rows.tolist())
        for q in rows.tolist()[:i]
    )
    assert permutations.closest(rows) == naive
    assert permutations.closest(torch.tensor([[0, 1, 2], [0, 2, 1], [1, 2, 0]]).numpy()) == 2


def test_pirl_is_shown_the_orders_it_is_given() -> None:
    seen: list[Any] = []

    def shown(model: Any, images: Any, **options: Any) -> Any:
        seen.append(options["plan"].main[-1].tiles.orders)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutations, "learn", shown)
        few = permutations.far_orders(9, 3)
        found = permutations.digits()
        scores = [permutations.score("PIRL", orders, found, 1, 0) for orders in (few, few[:0])]
    assert seen == [tuple(map(tuple, few.tolist())), ()]
    assert scores[0] == scores[1]  # of the same untrained encoder
    flat = torch.linspace(0, 1, 64)[None]
    large = permutations.enlarged(flat)
    assert large.shape == (1, 3, 24, 24)
    assert float(large.mean()) == pytest.approx(0.5, abs=1e-3)


def test_f19_a_trained_encoder_has_better_neighbours() -> None:
    untrained, few, trained = facts("neighbours").values()
    assert trained > untrained
    assert trained > few
    shown: Any = figure("neighbours")
    assert shown.pictures.shape[:3] == (3, 6, 8)
    assert not shown.wrong[:, :, 0].any()  # the query itself


def test_a_latent_that_holds_all_of_y_makes_the_energy_low_everywhere() -> None:
    found = facts("capacity")
    shown: Any = figure("capacity")
    for name, (few, full) in shown.maps.items():
        share = found[f"mean F of the map where z holds all, beside little: {name}"]
        assert share == pytest.approx(full.mean() / few.mean())
        assert share < (0.2 if name == "Autoencoder" else 1e-6)
    # One direction of two: the squared distance to a line, low on it and nowhere else.
    middle = shown.points.mean(axis=0)
    normal = np.linalg.svd(shown.points - middle)[2][1]
    exact = ((shown.where.points.numpy() - middle) @ normal) ** 2
    assert np.allclose(shown.maps["PCA"][0].ravel(), exact, atol=1e-4)


def test_a_code_of_one_number_learns_points_by_heart_and_nothing_of_others() -> None:
    found = facts("capacity")
    constant = found["squared error of new points, by the mean of those known"]
    assert constant == pytest.approx(1 + 1 / 24, rel=0.15)
    assert found["squared error of points known by one number"] < 0.1 * constant
    assert found["squared error of new points"] > constant


def test_f20_collapses_only_without_shaping() -> None:
    found = facts("collapse")
    alone, some, all_ = (found[f"deviation at the end, {name}"] for name in embeddings.SHAPINGS)
    assert alone < 0.1 * min(some, all_)
    assert all_ > 0.5
    ranks = [found[f"rank at the end, {name}"] for name in embeddings.SHAPINGS]
    assert ranks[2] > 1.5 * ranks[1]  # a floor of the variance alone: few directions
    assert found["largest share of a prototype, Sinkhorn"] == pytest.approx(1 / 8, abs=1e-4)
    assert found["largest share of a prototype, softmax"] > 0.2
    shown: Any = figure("collapse")
    assert np.allclose(shown.balanced.sum(axis=1), 1, atol=1e-5)


def test_f23_flips_are_mirrors_and_three_quarters_are_hidden() -> None:
    found = facts("views")
    assert found["share of the patches hidden"] == 0.75
    assert found["largest difference of a flipped view and the mirrored photograph"] < 1e-6
    shown: Any = figure("views")
    made = dict(zip(embeddings.OPERATIONS, shown.made, strict=True))
    assert np.ptp(made["grey"], axis=-1).max() < 1e-3
    for name in ("crop", "colour jitter"):
        assert np.abs(made[name][0] - made[name][1]).mean() > 0.02


def test_f25_variances_and_maps() -> None:
    found = facts("reduction")
    assert found["sum of the variances of 13 standardised features"] == pytest.approx(13, rel=1e-4)
    assert found["trustworthiness, t-SNE"] > found["trustworthiness, PCA"] > 0.6
    assert all(0.6 < found[f"trustworthiness, {name}"] <= 1 for name in ("autoencoder", "MDS"))


def test_f25_a_curved_code_follows_the_sheet() -> None:
    points, along = worlds.roll(500, 1, deviation=0.0)
    angle = 1.5 * math.pi * (1 + 2 * along)
    assert torch.allclose(points[:, [0, 2]].norm(dim=1), angle / (4.5 * math.pi), atol=1e-6)
    found = facts("roll")
    assert found["variance not explained, autoencoder"] < 0.5 * found["variance not explained, PCA"]
    shown: Any = figure("roll")
    values = np.linalg.eigvalsh(np.cov(shown.points.T))
    lost = found["variance not explained, PCA"]
    assert lost == pytest.approx(float(values[0] / values.sum()), rel=1e-3)


def test_f25_noise_is_taken_out_of_voices_that_were_not_heard() -> None:
    found = facts("speech")
    ours, noisy = (found[f"SI-SDR of new voices [dB], {way}"] for way in ("erg", "noisy"))
    assert noisy == pytest.approx(0, abs=0.5)
    assert ours > noisy + 3
    shown: Any = figure("speech")
    clean = shown.levels["clean"]
    away = [np.abs(shown.levels[name] - clean).mean() for name in ("noisy, 0 dB", "denoised")]
    assert away[1] < 0.7 * away[0]
    sound = signals.voice(0, 3)
    assert np.abs(sound).max() == pytest.approx(0.3)
    assert not np.allclose(sound, signals.voice(0, 4))
    assert np.array_equal(sound, signals.voice(0, 3))


def test_f25_what_is_laid_over_pictures_is_taken_away() -> None:
    found = facts("overlay")
    corrupted, told = (found[f"PSNR of new pieces [dB], {way}"] for way in ("corrupted", "erg"))
    assert told > corrupted + 5
    shown: Any = figure("overlay")
    assert [*shown.shown[0]] == [*signals.SHOWN, "original"]
    pieces = signals.cut_up(24)
    assert all(piece.shape == (24, 24, 3) for piece in pieces)


def test_f25_a_leaderboard_is_in_order() -> None:
    shown: Any = figure("leaderboard")
    assert (np.diff(shown.probes) <= 0).all()
    assert shown.probes.min() > 0.4
    assert set(shown.names) == {"raw pixels", "PCA", *leaderboard.CODES}
    assert shown.widths[shown.names.index("raw pixels")] == 64
    assert shown.widths[shown.names.index("PCA")] == 32
    assert shown.neighbours[shown.names.index("raw pixels")] > 0.95
    told = leaderboard.few_of_each(np.array([0, 1, 0, 0, 1, 1]), 2)
    assert told.tolist() == [0, 1, 2, 4]


def test_names_of_arrows_keep_their_distance() -> None:
    moved = codes.apart(np.array([-1.0, -0.9, 0.5, 0.6, 0.7]), 0.3)
    assert moved.tolist() == pytest.approx([-1.0, -0.7, 0.5, 0.8, 1.1])


def test_f25_neighbours_on_the_plane_look_alike() -> None:
    found = facts("traversal")
    for z in ("z1", "z2"):  # where one says nothing, its neighbours do not differ
        near = found[f"squared difference of neighbours along {z}"]
        assert 0.01 < near / found["squared difference of two at random"] < 0.3


def test_f25_anomalies_have_high_energies() -> None:
    found = facts("anomalies")
    assert found["AUROC of the energy"] > 0.9
    shown: Any = figure("anomalies")
    wins = (shown.normal[:, None] < shown.other[None]).mean()
    assert found["AUROC of the energy"] == pytest.approx(float(wins), abs=1e-9)


@pytest.mark.parametrize("name", landscape.FIGURES)
def test_every_figure_is_drawn(name: str, tmp_path: Path) -> None:
    """In one of the two themes each; the next test draws one in both."""
    theme = list(THEMES)[list(landscape.FIGURES).index(name) % 2]
    path = landscape.save(figure(name), tmp_path / f"{name}.png", theme=theme, dpi=40)
    assert_drawn(path, theme)
    for fact, line in zip(facts(name), in_words(facts(name)), strict=True):
        assert line.startswith(f"{fact}: ")
    assert all(math.isfinite(value) for value in facts(name).values())


@pytest.mark.parametrize("theme", THEMES)
def test_light_and_dark(theme: str, tmp_path: Path) -> None:
    assert_drawn(landscape.save(figure("wells"), tmp_path / "a.png", theme=theme, dpi=40), theme)


def assert_drawn(path: Path, theme: str) -> None:
    """On the theme's paper, and with more than paper on it."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    paper = THEMES[theme].paper
    assert pixels[0, 0].tolist() == [int(paper[i : i + 2], 16) for i in (1, 3, 5)]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_drawing_is_the_same_twice(tmp_path: Path) -> None:
    one, two = (landscape.save(figure("wells"), tmp_path / n, dpi=40) for n in ("a.svg", "b.svg"))
    assert one.read_bytes() == two.read_bytes()


def test_what_cannot_be_drawn_is_said_in_one_line(tmp_path: Path) -> None:
    wells = figure("wells")
    with pytest.raises(ValueError, match="no theme is called 'blue'"):
        landscape.save(wells, tmp_path / "a.png", theme="blue")
    with pytest.raises(ValueError, match=r"a\.gif is no picture's name"):
        landscape.save(wells, tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"no figure is called 'well'\. Did you mean wells"):
        landscape.compute("well")
    with pytest.raises(ValueError, match=r"figure wells has no option 'method'\. It has seed, k"):
        landscape.compute("wells", method="KMeans")
    assert not list(tmp_path.iterdir())
    for name in ("capacity", "collapse", "denoising", "contrastive", "latent"):
        with pytest.raises(ValueError, match=r"9 steps are too few\. Use [12]0 or more"):
            landscape.compute(name, steps=9)


def test_without_matplotlib_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wells = figure("wells")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"not installed\. pip install 'erg\[landscape\]'"):
        landscape.save(wells, tmp_path / "a.png")


def test_sheets_leave_gaps_and_stretch() -> None:
    images = np.arange(12.0).reshape(3, 2, 2)
    whole = sheet(images, 2)
    assert whole.shape == (5, 5)
    assert np.array_equal(whole[:2, 3:], images[1])
    assert np.array_equal(whole[3:, :2], images[2])
    assert np.isnan(whole[2]).all()
    assert np.isnan(whole[3:, 3:]).all()
    assert np.abs(stretched(images)).max(axis=(1, 2)).tolist() == [1, 1, 1]


def test_an_energy_of_ones_own_is_read_in_the_same_way() -> None:
    mixture = method("GaussianMixture", 2, k=3, covariance="isotropic")
    energy = energy_of(learn(mixture, worlds.mixture(900), steps=20))
    where = grid((-3.0, 3.0))
    from erg.landscape.fields import energy_map, gibbs, wells

    found = wells(energy, where)
    assert len(found) == 3
    gaps = torch.cdist(found, torch.tensor(worlds.MEANS)).amin(dim=1)
    assert float(gaps.max()) < 0.15
    cell = (6 / 199) ** 2
    levels = energy_map(energy, where)
    # F is -log p of something that integrates to one, so that Gibbs at beta = 1 is exp(-F).
    assert np.allclose(gibbs(levels, 1.0, cell), np.exp(-levels), rtol=0.02)
    assert len(complete(energy, 0.0, (-3.0, 3.0)).y2) >= 1
