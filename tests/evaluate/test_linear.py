import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sslpipe.errors import ExtraError, SslpipeError
from sslpipe.evaluate import Features, cross_validated, linear


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
