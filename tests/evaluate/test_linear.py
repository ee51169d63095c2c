import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sslpipe.errors import ExtraError, SslpipeError
from sslpipe.evaluate import Features, cross_validated, linear
from sslpipe.evaluate.linear import (
    OFFICIAL_GRID,
    LogisticSettings,
    logistic,
    path,
    standardised,
)
from sslpipe.evaluate.subsets import class_sizes, distinct, held_out, ranks_in_class


def blobs(count, *, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 4, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, 4, generator=generator)
    scales = torch.tensor([1.0, 1e3, 1e-3, 1.0])
    return Features((centres[labels] + noise) * scales, labels, torch.arange(count))


def test_features_are_standardised_by_the_training_samples():
    train, test = blobs(90), blobs(60, seed=1)
    x, y = train.arrays()
    mean, std = x.mean(axis=0), x.std(axis=0)
    model = LogisticRegression(C=0.3, max_iter=1000).fit((x - mean) / std, y)
    expected = model.score((test.arrays()[0] - mean) / std, test.labels.numpy())
    result = linear(train, test, c=0.3)
    assert result.top1 == pytest.approx(expected)
    assert 0.5 < result.top1 < 1.0
    for part in ("L-BFGS", "C=0.3", "standardised", "90 samples", "tested on 60"):
        assert part in result.protocol


def test_unlabelled_samples_are_ignored_and_not_counted():
    train, test = blobs(90), blobs(60, seed=1)
    more = Features(
        torch.cat([train.features, torch.full((5, 4), 1e9)]),
        torch.cat([train.labels, torch.full((5,), -1)]),
        torch.arange(95),
    )
    assert linear(more, test) == linear(train, test)
    assert cross_validated(more) == cross_validated(train)


def test_cross_validation_uses_as_many_folds_as_there_are_samples_in_a_class():
    assert "5-fold" in cross_validated(blobs(60)).protocol
    features = blobs(60)
    few = np.flatnonzero((features.labels.numpy() > 0) | (np.arange(60) < 9))  # 3 of class 0
    small = Features(features.features[few], features.labels[few], features.uids[few])
    result = cross_validated(small)
    assert "3-fold" in result.protocol
    assert 0.4 < result.top1 <= 1.0
    assert cross_validated(small) == result


def test_cross_validation_leaves_out_classes_of_one_sample():
    data = blobs(60)
    alone = Features(
        torch.cat([data.features, torch.full((2, 4), 1e9)]),
        torch.cat([data.labels, torch.tensor([77, 78])]),
        torch.arange(62),
    )
    result = cross_validated(alone)
    assert result.top1 == cross_validated(data).top1
    assert "on 60 samples, without 2 that are alone" in result.protocol


def test_cross_validation_tests_on_what_it_did_not_train_on():
    """Random labels in many dimensions: fitted perfectly, predicted at chance."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 100, generator=generator)
    labels = torch.arange(60) % 2
    data = Features(features, labels, labels)
    assert linear(data, data).top1 == 1.0
    assert cross_validated(data).top1 < 0.75


def test_errors():
    with pytest.raises(SslpipeError, match="6 usable samples are of 1 class"):
        linear(blobs(6, classes=1), blobs(6))
    with pytest.raises(SslpipeError, match="0 usable samples are of 0 class"):
        cross_validated(blobs(4, classes=4))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ExtraError, match=r"pip install 'sslpipe\[train\]'"):
        linear(blobs(9), blobs(9))


def noisy(count, *, seed=0, classes=3, dim=30):
    """Few samples in many dimensions: which C is best matters."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, dim, generator=generator) * 3
    uids = torch.randperm(10**6, generator=generator)[:count]
    return Features(centres[labels] + noise, labels, uids)


def by_uid(features):
    return features.at(features.uids.argsort())


def slow_choice(train, grid, share=0.2):
    """scikit-learn's own pipeline in float64, fitted anew for each C on the same split."""
    train = by_uid(train)
    held = held_out(train, share, seed=0, purpose="linear/held-out")
    (x, y), (held_x, held_y) = train.at(~held).arrays(), train.at(held).arrays()
    models = [cold(c).fit(x, y) for c in grid]
    return grid[int(np.argmax([model.score(held_x, held_y) for model in models]))]


def cold(c):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-8))


def test_c_is_chosen_as_scikit_learn_would_on_the_held_out_fifth():
    train, test = noisy(200), noisy(300, seed=1)
    exact = LogisticSettings(choosing_tolerance=1e-6, tolerance=1e-6)
    (found,) = logistic(train, test, exact)
    c = slow_choice(train, exact.grid)
    assert 1e-4 < c < 1e3
    assert f"C={c:g} of 8 from 0.0001 to 1000, chosen on 20% of the training" in found.protocol
    expected = cold(c).fit(*train.arrays()).score(*test.arrays())
    assert found.value == pytest.approx(expected, abs=1e-3)
    assert 0.4 < found.value < 1.0


def test_a_warm_start_in_float32_ends_where_a_cold_one_in_float64_does():
    train, test = noisy(200), noisy(300, seed=1)
    x, test_x = standardised(train, test)
    y, test_y = train.labels.numpy(), test.labels.numpy()
    settings = LogisticSettings(grid=(1e-3, 1e-1, 10.0))
    for c, model in zip(settings.grid, path(x, y, settings, tolerance=1e-5), strict=True):
        exact = cold(c).fit(*train.arrays())
        losses = [
            log_loss(test_y, m.predict_proba(z))
            for m, z in ((model, test_x), (exact, test.arrays()[0]))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert model.score(test_x, test_y) == pytest.approx(exact.score(*test.arrays()), abs=4e-3)


def chosen_c(measure):
    return measure.protocol.split("C=")[1].split(",")[0]


def test_test_labels_choose_nothing():
    """Whatever they are, C is the same; the measured value is not."""
    train, test = noisy(150), noisy(200, seed=1)
    found = {}
    for name, labels in {
        "true": test.labels,
        "scrambled": test.labels.roll(1),
        "one class": torch.full_like(test.labels, 2),
    }.items():
        (measure,) = logistic(train, replace(test, labels=labels))
        found[name] = (chosen_c(measure), measure.value)
    assert len({c for c, _ in found.values()}) == 1
    assert found["true"][1] > found["scrambled"][1] + 0.1


def test_folds_choose_inside_their_training_part():
    """Against scikit-learn on the same folds, with a choice from the other folds alone."""
    data = by_uid(noisy(120))
    settings = LogisticSettings(folds=3)
    fold_N = ranks_in_class(data, seed=0, purpose="linear/folds") % 3
    expected, right = [], []
    for fold in range(3):
        train, test = data.at(fold_N != fold), data.at(fold_N == fold)
        expected.append(slow_choice(train, settings.grid))
        right.append(cold(expected[-1]).fit(*train.arrays()).predict(test.arrays()[0]))
    exact = replace(settings, choosing_tolerance=1e-6, tolerance=1e-6)
    (found,) = logistic(data, None, exact)
    truth = np.concatenate([data.labels[fold_N == fold].numpy() for fold in range(3)])
    assert found.value == pytest.approx((np.concatenate(right) == truth).mean(), abs=1e-9)
    least, most = min(expected), max(expected)
    assert f"C={least:g}" in found.protocol
    assert f"{most:g} of 8" in found.protocol
    assert "3-fold" in found.protocol


def test_copies_are_in_one_fold_only():
    """Random labels are predicted at chance, though every sample is there twice."""
    generator = torch.Generator().manual_seed(0)
    once = torch.randn(60, 100, generator=generator)
    rows = torch.arange(60).repeat(2)
    labels = (torch.arange(60) % 2)[rows]
    data = Features(once[rows], labels, torch.arange(120), contents=rows)
    (found,) = logistic(data, None, LogisticSettings(grid=(1.0,)))
    assert found.value < 0.75
    assert "on 60 samples, without 60 exact copies" in found.protocol
    blind = Features(data.features, data.labels, data.uids)
    assert logistic(blind, None, LogisticSettings(grid=(1.0,)))[0].value > 0.9


def test_the_order_of_rows_changes_nothing():
    train, test = noisy(100), noisy(50, seed=1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    assert logistic(train.at(order), test) == logistic(train, test)
    assert logistic(train.at(order)) == logistic(train)


def test_a_class_keeps_one_sample_and_gives_one():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] + [3] * 7)
    data = Features(torch.zeros(20, 1), labels, torch.arange(20) * 13)
    held = held_out(data, 0.2, seed=0, purpose="x")
    assert [int(held[labels == c].sum()) for c in range(4)] == [2, 1, 0, 1]
    assert class_sizes(labels)[[0, 10, 12, 13]].tolist() == [10, 2, 1, 7]


def test_draws_differ_by_seed_draw_and_purpose_and_are_uniform():
    data = Features(torch.zeros(400, 1), torch.arange(400) % 2, torch.arange(400) * 31)
    draws = [ranks_in_class(data, seed=0, purpose="x", draw=d) for d in range(50)]
    assert not draws[0].equal(draws[1])
    assert not draws[0].equal(ranks_in_class(data, seed=1, purpose="x"))
    assert not draws[0].equal(ranks_in_class(data, seed=0, purpose="y"))
    for ranks in draws[:3]:
        assert ranks[::2].sort().values.equal(torch.arange(200))
    taken = torch.stack([ranks < 50 for ranks in draws]).sum(0)  # each with probability 1/4
    assert abs(float(taken.double().mean()) - 12.5) < 1e-9
    assert 2 < int(taken.min()) < 9 < 16 < int(taken.max()) < 24


def test_the_first_of_equal_contents_is_kept():
    data = Features(torch.zeros(5, 1), torch.arange(5), torch.arange(5),
                    contents=torch.tensor([7, 3, 7, -1, 3]))  # fmt: skip
    assert distinct(data).uids.tolist() == [0, 1, 3]
    assert distinct(replace(data, contents=torch.empty(0))).uids.tolist() == [0, 1, 2, 3, 4]


def test_what_did_not_converge_is_said():
    (found,) = logistic(noisy(100), noisy(30, seed=1), LogisticSettings(iterations=2))
    assert "at most 2 iterations, not converged" in found.protocol


def test_the_official_grid():
    assert len(OFFICIAL_GRID) == 45
    np.testing.assert_allclose(OFFICIAL_GRID, np.logspace(-6, 5, 45))
    (found,) = logistic(noisy(60), noisy(30, seed=1), LogisticSettings(grid=OFFICIAL_GRID))
    assert "of 45 from 1e-06 to 100000" in found.protocol


def test_errors_of_choosing():
    single = Features(torch.eye(3), torch.arange(3), torch.arange(3))
    with pytest.raises(SslpipeError, match="no class of 3 training samples has two"):
        logistic(single, single)
    with pytest.raises(SslpipeError, match=r"C is one of \[-1.0, 1.0\]; give numbers above 0"):
        logistic(noisy(30), None, LogisticSettings(grid=(1.0, -1.0)))
    with pytest.raises(SslpipeError, match="none of the 3 samples has a label"):
        logistic(replace(single, labels=torch.full((3,), -1)))
