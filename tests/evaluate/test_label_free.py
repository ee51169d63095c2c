import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from sslpipe.encoders.monitors import rankme
from sslpipe.errors import SslpipeError
from sslpipe.evaluate.features import Features
from sslpipe.evaluate.label_free import (
    LabelFreeSettings,
    label_free,
    label_free_of_views,
)


def features(count=300, dim=40, *, decay=1.0, seed=0):
    """Rotated features whose eigenvalues fall as j^-decay, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, dim)) * np.arange(1, dim + 1) ** (-decay / 2)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    uids = torch.from_numpy(rng.permutation(count))
    z = torch.from_numpy(z @ turn + 0.3).float()
    return Features(z, torch.full((count,), -1), uids)


def values(measures):
    return {measure.name: measure.value for measure in measures}


def protocols(measures):
    return {measure.name: measure.protocol for measure in measures}


@pytest.mark.parametrize(("count", "dim"), [(300, 40), (30, 50)])
def test_the_spectra_are_those_of_numpy(count, dim):
    given = features(count, dim)
    found = values(label_free(given))
    z = given.features.double().numpy()
    sigma = np.linalg.svd(z, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    assert found["RankMe"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    assert found["RankMe"] == pytest.approx(float(rankme(given.features)), rel=1e-6)
    eigenvalues = np.linalg.eigvalsh(np.cov(z.T))[::-1]
    assert found["NESum"] == pytest.approx(eigenvalues.sum() / eigenvalues[0])
    participation = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert found["participation ratio"] == pytest.approx(participation)


def test_alpha_is_the_weighted_fit_of_the_official_code():
    given = features(500, 120, decay=1.3)
    settings = LabelFreeSettings(alpha_ranks=(5, 60))
    measures = label_free(given, settings=settings)
    eigenvalues = np.linalg.eigvalsh(np.cov(given.features.double().numpy().T))[::-1]
    j = np.arange(5, 61)
    fit = np.polyfit(np.log(j), np.log(eigenvalues[4:60]), 1, w=np.sqrt(1 / j))
    assert values(measures)["alpha-ReQ"] == pytest.approx(-fit[0])
    assert 1.1 < -fit[0] < 1.6
    assert "fit of ranks 5 to 60" in protocols(measures)["alpha-ReQ"]


def test_alpha_takes_the_ranks_that_there_are():
    assert "ranks 11 to 40," in protocols(label_free(features(300, 40)))["alpha-ReQ"]
    flat = features(300, 40)
    flat.features[:, 20:] = 0  # eigenvalues of rounding are no decay
    assert "ranks 11 to 20," in protocols(label_free(flat))["alpha-ReQ"]
    assert "alpha-ReQ" not in values(label_free(features(300, 12)))


def test_uniformity_and_std_are_the_slow_loops():
    given = features(60, 10)
    x = given.features.double()
    x = x / x.norm(dim=1, keepdim=True)
    kernel = [math.exp(-2 * float((a - b).square().sum())) for a, b in itertools.combinations(x, 2)]
    found = values(label_free(given))
    assert found["uniformity"] == pytest.approx(math.log(np.mean(kernel)))
    assert found["std of channels"] == pytest.approx(x.numpy().std(0, ddof=1).mean(), rel=1e-5)


def test_pairs_of_some_keyed_samples_are_an_estimate():
    given = features(300, 10)
    some = LabelFreeSettings(pairs_of=100)
    assert values(label_free(given, settings=some))["uniformity"] == pytest.approx(
        values(label_free(given))["uniformity"], abs=0.2
    )
    assert "100 l2-normalised" in protocols(label_free(given, settings=some))["uniformity"]


def test_no_order_of_samples_and_no_label_changes_a_number():
    given = features(200, 20)
    mixed = given.at(torch.arange(200).flip(0))
    settings = LabelFreeSettings(pairs_of=50)
    assert label_free(given, settings=settings) == label_free(mixed, settings=settings)
    labelled = replace(given, labels=torch.arange(200) % 3)
    assert label_free(labelled, given, settings) == label_free(given, None, settings)


def test_few_samples_are_warned_of():
    assert "unsure: fewer than 2 D = 80 samples" in protocols(label_free(features(79)))["RankMe"]
    assert "unsure" not in protocols(label_free(features(80)))["RankMe"]


def test_a_collapsed_encoder_shows():
    found = values(label_free(replace(features(), features=torch.ones(300, 40))))
    assert found["RankMe"] == pytest.approx(1.0, abs=0.01)
    assert found["uniformity"] == pytest.approx(0.0, abs=1e-9)
    assert found["std of channels"] == pytest.approx(0.0, abs=1e-6)


def views(count, n=50, dim=12, *, noise=0.3, seed=0):
    base = features(n, dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for _ in range(count):
        z = base.features + noise * torch.randn(n, dim, generator=generator)
        order = torch.randperm(n, generator=generator)  # each view in an order of its own
        moved.append(replace(base, features=z).at(order))
    return moved


def slow_lidar(z_NQD, delta, eps):
    """Section 3 of the paper, one sample and view at a time."""
    n, q, dim = z_NQD.shape
    means = z_NQD.mean(1)
    between = sum(np.outer(m - means.mean(0), m - means.mean(0)) for m in means) / (n - 1)
    within = sum(np.outer(z - m, z - m) for m, of in zip(means, z_NQD, strict=True) for z in of) / (
        n * (q - 1)
    )
    root = scipy.linalg.fractional_matrix_power(within + delta * np.eye(dim), -0.5)
    values_ = np.linalg.eigvalsh(root @ between @ root).clip(0)
    p = values_ / values_.sum() + eps
    return math.exp(-(p * np.log(p)).sum())


def test_lidar_and_alignment_are_the_slow_formulas():
    made = views(5)
    found = values(label_free_of_views(made))
    ordered = [view.at(view.uids.argsort()).features.double().numpy() for view in made]
    z_NQD = np.stack(ordered, axis=1)
    assert found["LiDAR"] == pytest.approx(slow_lidar(z_NQD, 1e-4, 1e-8), rel=1e-6)
    x = z_NQD / np.linalg.norm(z_NQD, axis=2, keepdims=True)
    distances = [
        ((of[a] - of[b]) ** 2).sum() for of in x for a, b in itertools.combinations(range(5), 2)
    ]
    assert found["alignment"] == pytest.approx(np.mean(distances))


def test_views_that_agree_are_aligned():
    near, far = (values(label_free_of_views(views(3, noise=noise))) for noise in (0.01, 1.0))
    assert near["alignment"] < 0.1 * far["alignment"]


def test_views_of_other_samples_are_refused():
    one, two = views(2)
    with pytest.raises(SslpipeError, match="view 1 is of other samples"):
        label_free_of_views([one, replace(two, uids=two.uids + 1)])
    with pytest.raises(SslpipeError, match=r"1 view\(s\) have no pairs"):
        label_free_of_views([one])
    measures = label_free_of_views(views(2, n=12))
    assert "at most n - 1 = 11, below D" in protocols(measures)["LiDAR"]


def test_what_cannot_be_measured():
    with pytest.raises(SslpipeError, match=r"1 sample\(s\) have no spread"):
        label_free(features(1))
    with pytest.raises(SslpipeError, match=r"alpha_ranks = \(5, 5\)"):
        LabelFreeSettings(alpha_ranks=(5, 5))
