"""Bootstrap intervals against the normal approximation and a plain loop."""

import itertools

import numpy as np
import pytest

from erg.evaluate import intervals
from erg.evaluate.intervals import Score, bootstrap, clear, difference, sign_test


def test_the_interval_of_right_and_wrong_is_the_normal_one() -> None:
    n, p = 4000, 0.7
    correct = np.arange(n) < n * p
    score = bootstrap(correct, seed=1, repeats=4000)
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert score.value == pytest.approx(p)
    # The end of a percentile interval of 4,000 repeats is itself uncertain by 4 % of `half`.
    assert score.low == pytest.approx(p - half, abs=0.1 * half)
    assert score.high == pytest.approx(p + half, abs=0.1 * half)


def test_the_interval_of_numbers_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=3000)
    score = bootstrap(values, seed=2, repeats=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert score.value == pytest.approx(values.mean())
    assert score.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert score.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_both_ways_of_resampling_agree_with_a_plain_loop() -> None:
    random = np.random.default_rng(3)
    for values in (random.integers(0, 2, size=40).astype(np.float64), random.exponential(size=40)):
        means = [values[random.integers(40, size=40)].mean() for _ in range(8000)]
        low, high = np.quantile(means, [0.025, 0.975])
        score = bootstrap(values, seed=4, repeats=8000)
        width = high - low
        assert score.low == pytest.approx(low, abs=0.06 * width)
        assert score.high == pytest.approx(high, abs=0.06 * width)


def test_resamples_in_blocks_have_the_same_law() -> None:
    values = np.random.default_rng(5).normal(size=6000)  # 699 resamples fill a block
    means = intervals._resampled_means(values, np.random.default_rng(0), 1000)
    assert means.shape == (1000,)
    for part in (means[:699], means[699:]):
        assert part.std() == pytest.approx(values.std() / np.sqrt(6000), rel=0.15)
    assert len(np.unique(means)) == 1000


def test_ninety_five_percent_of_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(6)
    held = 0
    for trial in range(300):
        score = bootstrap(random.random(500) < 0.3, seed=trial, repeats=300)
        held += score.low <= 0.3 <= score.high
    assert 0.90 <= held / 300 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(7).normal(size=100)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_equal_items_give_no_width() -> None:
    assert bootstrap(np.ones(10, dtype=np.bool_)) == Score(1.0, 1.0, 1.0)
    assert bootstrap(np.array([0.25])) == Score(0.25, 0.25, 0.25)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    random = np.random.default_rng(8)
    hard = random.random(2000)
    first, second = hard < 0.62, hard < 0.60  # first solves all that second does, and 2 % more
    paired = difference(first, second, seed=0, repeats=2000)
    share = (first != second).mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 2000)
    assert paired.value == pytest.approx(first.mean() - second.mean())
    assert paired.low > 0
    assert paired.high - paired.low == pytest.approx(2 * half, rel=0.15)
    apart = bootstrap(first, seed=0)
    assert apart.high - apart.low > 3 * (paired.high - paired.low)
    assert difference(second, first, seed=0).high < 0


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap(np.zeros(0))
    with pytest.raises(ValueError, match="NaN"):
        bootstrap(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="3 and 4"):
        difference(np.zeros(3), np.zeros(4))


def test_copies_of_items_are_no_evidence() -> None:
    random = np.random.default_rng(9)
    values, times = random.normal(size=60), random.integers(1, 5, size=60)
    names = np.array([f"image {i}" for i in range(60)])
    many, groups = np.repeat(values, times), np.repeat(names, times)
    found = bootstrap(many, groups=groups, seed=1, repeats=6000)
    assert found.value == pytest.approx(many.mean())
    plain = []
    for _ in range(6000):
        drawn = random.integers(60, size=60)
        items = [v for i in drawn for v in [values[i]] * times[i]]
        plain.append(np.mean(items))
    low, high = np.quantile(plain, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.06 * (high - low))
    assert found.high == pytest.approx(high, abs=0.06 * (high - low))
    alone = bootstrap(many, seed=1)
    assert alone.high - alone.low < 0.8 * (found.high - found.low)
    assert bootstrap(values, groups=names, seed=2) == bootstrap(values, seed=2)
    gap = difference(many, 0 * many, groups=groups, seed=1, repeats=6000)
    assert gap == found
    with pytest.raises(ValueError, match="59 groups for 60"):
        bootstrap(values, groups=names[:59])


@pytest.mark.parametrize(("better", "worse", "equal"), [(6, 0, 2), (4, 1, 0), (3, 3, 1), (1, 7, 0)])
def test_the_sign_test_counts_all_ways_in_which_coins_fall(
    better: int, worse: int, equal: int
) -> None:
    first = np.repeat([True, False, True], [better, worse, equal])
    second = np.repeat([False, True, True], [better, worse, equal])
    n, apart = better + worse, abs(better - worse)
    falls = [abs(sum(coins)) >= apart for coins in itertools.product((-1, 1), repeat=n)]
    assert sign_test(first, second) == pytest.approx(np.mean(falls), abs=1e-12)
    twice = np.tile(first, 2), np.tile(second, 2)
    groups = np.tile(np.arange(len(first)), 2)
    assert sign_test(*twice, groups=groups) == sign_test(first, second)
    assert sign_test(first, first) == 1.0


def test_few_items_are_never_clear() -> None:
    for n, surely in ((4, False), (5, False), (6, True), (30, True)):
        first, second = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        gap = difference(first, second)
        assert gap.low == 1.0, "the bootstrap sees nothing to doubt"
        assert clear(gap, first, second) is surely
        assert not clear(difference(second, first), second, first)


def test_copies_do_not_outweigh_most_contents() -> None:
    """Six contents of 100 copies each against twenty single ones."""
    groups = np.repeat(np.arange(26), np.repeat([100, 1], [6, 20]))
    first = groups < 6
    gap = difference(first, ~first, groups=groups)
    assert gap.low > 0
    assert sign_test(first, ~first, groups=groups) < 0.05
    assert not clear(gap, first, ~first, groups=groups)
