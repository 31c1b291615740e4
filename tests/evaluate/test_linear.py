"""The linear probe against scikit-learn, and against leaks."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from erg.evaluate import linear
from erg.evaluate.linear import fit_probe, linear_accuracy


def features(n: int, seed: int, d: int = 12, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes on features of very different scales and offsets."""
    centres = np.random.default_rng(99).normal(size=(classes, d))
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    x = centres[labels] + 1.5 * random.normal(size=(n, d))
    return (x * np.logspace(-2, 2, d) + np.arange(d)).astype(np.float32), labels


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_are_those_of_scikit_learn(strength: float, classes: int) -> None:
    train, labels = features(800, 0, classes=classes)
    test, _ = features(200, 1, classes=classes)
    probe = fit_probe(train, labels, strengths=[strength])
    scaler = StandardScaler().fit(train.astype(np.float64))
    other = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    if classes == 2:
        # For two classes it fits one row of weights w: two rows w/2 and -w/2 cost half as much.
        other = other.set_params(C=2 * strength)
    other.fit(scaler.transform(train.astype(np.float64)), labels)
    wanted = other.predict_proba(scaler.transform(test.astype(np.float64)))
    np.testing.assert_allclose(softmax(probe.logits(test)), wanted, atol=1e-3)
    assert probe.tried == {}
    assert probe.strength == strength


def test_the_best_strength_on_validation_is_refitted_on_everything() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 60))  # few items, one feature that tells: needs regularising
    labels = np.where(x[:, 0] + 0.7 * random.normal(size=120) > 0, "yes", "no")
    probe = fit_probe(x, labels)
    assert probe.tried[probe.strength] == max(probe.tried.values())
    assert all(
        accuracy < probe.tried[probe.strength]
        for strength, accuracy in probe.tried.items()
        if strength < probe.strength
    )
    assert probe.strength < 1
    alone = fit_probe(x, labels, strengths=[probe.strength])
    np.testing.assert_allclose(probe.weight, alone.weight, atol=1e-6)
    assert set(probe.predict(x)) == {"yes", "no"}


def test_a_probe_of_separable_classes_is_right_on_new_items() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(5, size=700)
    x = (np.eye(20)[labels] + 0.1 * random.normal(size=(700, 20))).astype(np.float32)
    tried = fit_probe(x, labels).tried
    tied = [strength for strength, accuracy in tried.items() if accuracy == max(tried.values())]
    assert len(tied) > 1
    assert fit_probe(x, labels).strength == min(tied)  # the simplest of equally good probes
    correct = linear_accuracy(x[:500], labels[:500], x[500:], labels[500:])
    assert correct.dtype == np.bool_
    assert correct.shape == (200,)
    assert correct.mean() > 0.99


def test_nothing_is_learnt_from_labels_that_mean_nothing() -> None:
    random = np.random.default_rng(1)
    x, labels = random.normal(size=(1500, 30)), random.integers(3, size=1500)
    correct = linear_accuracy(x[:500], labels[:500], x[500:], labels[500:])
    assert abs(correct.mean() - 1 / 3) < 0.06


def test_the_test_set_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = features(300, 0)
    test, test_labels = features(80, 1)
    whole = linear_accuracy(train, labels, test, test_labels)
    half = linear_accuracy(train, labels, test[:40], test_labels[:40])
    np.testing.assert_array_equal(whole[:40], half)
    seen = []
    predict = linear.Probe.predict
    monkeypatch.setattr(
        linear.Probe, "predict", lambda self, x: (seen.append(len(x)), predict(self, x))[1]
    )
    linear_accuracy(train, labels, test, test_labels)
    assert seen == [80]


def test_the_validation_split_takes_the_same_share_of_every_class() -> None:
    codes = np.repeat([0, 1, 2, 3, 4], [100, 40, 3, 2, 1])[
        np.random.default_rng(0).permutation(146)
    ]
    held = linear._validation_rows(codes, 0.2, np.random.default_rng(1))
    counts = [int((held & (codes == c)).sum()) for c in range(5)]
    assert counts == [20, 8, 1, 1, 0]
    again = linear._validation_rows(codes, 0.2, np.random.default_rng(2))
    assert (held != again).any()


def test_constant_features_and_lone_items_do_no_harm() -> None:
    train, labels = features(200, 0)
    held = np.concatenate([train, np.full((200, 2), [0.0, 3e5])], axis=1).astype(np.float32)
    plain = fit_probe(train, labels)
    constant = fit_probe(held, labels)
    np.testing.assert_array_equal(plain.predict(train), constant.predict(held))
    assert not constant.weight[:, -2:].any()
    held[:, -1] += 0.03125 * (np.arange(200) % 2)  # float32 has nothing finer at 3e5
    assert fit_probe(held, labels).scale[-2:].tolist() == [1, 1]
    alone = fit_probe(train[:3], np.array([0, 1, 2]))  # nothing to validate on
    assert alone.tried == {}
    assert alone.strength == 1e-2


def test_unseen_classes_of_the_test_set_are_wrong() -> None:
    train, labels = features(200, 0)
    assert not linear_accuracy(train, labels, train[:9], np.full(9, 17)).any()


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels = features(300, 0)
    whole = fit_probe(train, labels, strengths=[0.1])
    monkeypatch.setattr(linear, "ROWS", 37)
    blocks = fit_probe(train, labels, strengths=[0.1])
    np.testing.assert_allclose(blocks.weight, whole.weight, atol=1e-4)
    np.testing.assert_allclose(blocks.scale, train.std(axis=0, dtype=np.float64), rtol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    train, labels = features(30, 0)
    with pytest.raises(ValueError, match="29 labels for 30"):
        fit_probe(train, labels[:29])
    with pytest.raises(ValueError, match="two classes"):
        fit_probe(train, np.zeros(30))
    with pytest.raises(ValueError, match="positive"):
        fit_probe(train, labels, strengths=[0.0, 1.0])
    with pytest.raises(ValueError, match="5 labels for 30 test"):
        linear_accuracy(train, labels, train, labels[:5])
    train[2, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit_probe(train, labels)


def test_copies_do_not_validate_each_other() -> None:
    """Few items and many features: with copies on both sides no regularisation looks best."""
    random = np.random.default_rng(3)
    x = random.normal(size=(60, 80)).astype(np.float32)
    labels = (x[:, 0] + 0.8 * random.normal(size=60) > 0).astype(int)
    names = np.array([f"hash {i}" for i in random.permutation(60)])
    order = random.permutation(180)
    tripled, codes, groups = (np.tile(v, (3, 1) if v.ndim == 2 else 3)[order]
                              for v in (x, labels, names))  # fmt: skip
    held = linear._validation_groups(codes, groups, 0.2, np.random.default_rng(0))
    assert not set(groups[held]) & set(groups[~held])
    assert held.sum() == 3 * 12
    leaking, honest = fit_probe(tripled, codes), fit_probe(tripled, codes, groups=groups)
    assert max(leaking.tried.values()) == 1.0
    assert max(honest.tried.values()) < 0.95
    assert honest.strength < leaking.strength


def test_groups_of_one_item_change_nothing() -> None:
    train, labels = features(200, 0)
    names = np.array([f"hash {i}" for i in np.random.default_rng(0).permutation(200)])
    plain, grouped = fit_probe(train, labels), fit_probe(train, labels, groups=names)
    assert plain.tried == grouped.tried
    np.testing.assert_array_equal(plain.weight, grouped.weight)
    with pytest.raises(ValueError, match="199 groups for 200"):
        fit_probe(train, labels, groups=names[:199])
