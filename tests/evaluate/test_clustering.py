import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from sslpipe.errors import SslpipeError
from sslpipe.evaluate.clustering import (
    ClusteringSettings,
    clustering,
    judgement,
    matched_share,
)
from sslpipe.evaluate.features import Features


def blobs(count, *, classes=4, spread=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    z = centres[labels] + spread * torch.randn(count, 8, generator=generator)
    return Features(z, labels, torch.randperm(count, generator=generator))


def values(measures):
    return {measure.name: measure.value for measure in measures}


def entropy(values_):
    total = len(values_)
    return -sum(n / total * math.log(n / total) for n in Counter(values_).values())


def test_the_numbers_are_the_formulas():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    clusters = np.where(rng.random(200) < 0.6, (labels + 1) % 4, rng.integers(0, 4, 200))
    found = values(judgement(clusters, labels, "how"))
    pairs = list(zip(labels.tolist(), clusters.tolist(), strict=True))
    information = entropy(labels.tolist()) + entropy(clusters.tolist()) - entropy(pairs)
    mean = (entropy(labels.tolist()) + entropy(clusters.tolist())) / 2
    assert found["NMI"] == pytest.approx(information / mean)
    best = max(
        np.mean(np.array(names)[clusters] == labels) for names in itertools.permutations(range(4))
    )
    assert found["cluster accuracy"] == pytest.approx(best)
    same = [(a[0] == b[0], a[1] == b[1]) for a, b in itertools.combinations(pairs, 2)]
    both, one, two = (
        sum(map(all, same)), sum(a for a, _ in same), sum(b for _, b in same)
    )  # fmt: skip
    expected = one * two / len(same)
    assert found["ARI"] == pytest.approx((both - expected) / ((one + two) / 2 - expected))


def test_random_clusters_are_worth_nothing_but_in_nmi():
    rng = np.random.default_rng(1)
    labels, clusters = rng.integers(0, 10, 300), rng.integers(0, 10, 300)
    found = values(judgement(clusters, labels, ""))
    assert abs(found["AMI"]) < 0.03
    assert abs(found["ARI"]) < 0.03
    assert found["NMI"] > 0.05


def test_a_cluster_too_many_matches_no_class():
    assert matched_share(np.array([0, 0, 1, 2]), np.array([5, 5, 5, 9])) == 0.75
    assert matched_share(np.array([0, 0, 0, 0]), np.array([5, 5, 5, 9])) == 0.75


def test_clear_classes_are_found_on_the_sphere():
    features = blobs(120, spread=0.05)
    length = torch.rand(120, 1, generator=torch.Generator().manual_seed(1)) * 10 + 0.1
    for measure in clustering(replace(features, features=features.features * length)):
        assert measure.value == pytest.approx(1.0)
    assert "k-means, 4 clusters" in measure.protocol
    assert measure.chance == 0.25


def test_no_order_of_samples_changes_a_number_and_a_seed_does():
    features = blobs(150, spread=1.5)
    mixed = features.at(torch.arange(150).flip(0))
    assert clustering(features) == clustering(mixed)
    one = ClusteringSettings(starts=1)
    assert clustering(features, settings=one) != clustering(features, settings=replace(one, seed=1))


def test_the_start_is_chosen_by_inertia_never_by_labels():
    features = blobs(150, spread=1.5)
    wrong = replace(features, labels=features.labels.flip(0).roll(1))
    inertia = [f.split("inertia (")[1].split(")")[0] for f in (
        clustering(features)[0].protocol, clustering(wrong)[0].protocol
    )]  # fmt: skip
    assert inertia[0] == inertia[1]


def test_a_test_set_is_judged_by_the_centres_of_the_training_set():
    train, test = blobs(120, spread=0.05), blobs(20, spread=0.05, seed=1)
    measures = clustering(train, test)
    assert values(measures)["cluster accuracy"] == 1.0
    assert "judged by 20 test samples" in measures[0].protocol


def test_many_samples_are_taken_in_batches_and_it_is_said():
    measures = clustering(blobs(120, spread=0.05), settings=ClusteringSettings(whole=100))
    assert "mini-batch k-means (batch 4,096)" in measures[0].protocol
    assert values(measures)["cluster accuracy"] == pytest.approx(1.0)


def test_a_collapsed_encoder_has_a_number():
    features = replace(blobs(40), features=torch.ones(40, 8))
    found = values(clustering(features))
    assert found["cluster accuracy"] == 0.25
    assert found["AMI"] == found["ARI"] == 0.0


def test_what_cannot_be_measured():
    with pytest.raises(SslpipeError, match="none of the 8 samples has a label"):
        clustering(replace(blobs(8), labels=torch.full((8,), -1)))
    with pytest.raises(SslpipeError, match="all 8 labelled samples are of one class"):
        clustering(replace(blobs(8), labels=torch.ones(8, dtype=torch.int64)))
    with pytest.raises(SslpipeError, match="starts = 0"):
        ClusteringSettings(starts=0)
