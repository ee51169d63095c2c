from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
)

from sslpipe.errors import SslpipeError
from sslpipe.evaluate.features import Features
from sslpipe.evaluate.rankings import chance_of_ap, chance_of_hit
from sslpipe.evaluate.retrieval import RetrievalSettings, retrieval

NONE = torch.empty(0)


def blobs(count, *, classes=5, dim=6, seed=0, first=0):
    """Overlapping classes; uids are in no order."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    z = centres[labels] + torch.randn(count, dim, generator=generator)
    return Features(z, labels, first + torch.randperm(count, generator=generator))


def values(measures):
    return {measure.name: measure.value for measure in measures}


def slow_ap(relevant, depth):
    """Average precision of one ranking, a list of 0 and 1, over its first places."""
    hits, total = 0, 0.0
    for place, right in enumerate(relevant[:depth], 1):
        hits += right
        total += right * hits / place
    return total / sum(relevant)


def slow(gallery, queries, ranks, *, own, copies):
    """All numbers, one query at a time; `own`: a sample is not in its own ranking."""
    rows = []
    for z, label, uid, content in zip(
        queries.features, queries.labels, queries.uids, queries.contents, strict=True
    ):
        away = gallery.uids == uid if own else torch.zeros(len(gallery.uids), dtype=torch.bool)
        if not copies:
            away = away | (gallery.contents == content)
        similarity = normalize(gallery.features[~away], dim=1) @ (z / z.norm())
        order = similarity.argsort(descending=True)
        relevant = (gallery.labels[~away][order] == label).int().tolist()
        if sum(relevant):
            row = {f"recall@{k}": float(any(relevant[:k])) for k in ranks}
            row["mAP"] = slow_ap(relevant, len(relevant))
            row["mAP@R"] = slow_ap(relevant, sum(relevant))
            rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def with_contents(features, first=0):
    return replace(features, contents=first + torch.arange(len(features.uids)))


def test_leave_one_out_is_the_slow_loop():
    features = with_contents(blobs(90))
    found = values(retrieval(features))
    assert found == pytest.approx(slow(features, features, (1, 2, 4, 8), own=True, copies=False))
    assert 0.3 < found["mAP@R"] < found["mAP"] < found["recall@1"] < found["recall@8"] < 1


def test_a_test_set_is_the_slow_loop():
    gallery, queries = with_contents(blobs(70)), with_contents(blobs(40, seed=1), first=1000)
    settings = RetrievalSettings(ranks=(1, 3, 10))
    found = values(retrieval(gallery, queries, settings))
    assert found == pytest.approx(slow(gallery, queries, (1, 3, 10), own=False, copies=True))


def test_it_is_torchmetrics():
    gallery, queries = blobs(80), blobs(30, seed=1)
    cosine = normalize(queries.features, dim=1) @ normalize(gallery.features, dim=1).T
    target = queries.labels[:, None] == gallery.labels
    # they take what is not above 0 for irrelevant
    pairs = list(zip(cosine + 2, target, strict=True))
    found = values(retrieval(gallery, queries))
    ap = torch.stack([retrieval_average_precision(*pair) for pair in pairs]).mean()
    assert found["mAP"] == pytest.approx(float(ap))
    for k in (1, 2, 4, 8):
        hit = torch.stack([retrieval_hit_rate(*pair, top_k=k) for pair in pairs]).mean()
        assert found[f"recall@{k}"] == pytest.approx(float(hit))


def test_copies_are_left_out_and_counted_beside():
    features = with_contents(blobs(60))
    twins = torch.arange(0, 60, 7)  # each of these stands in the set twice, with one label
    double = Features(
        torch.cat([features.features, features.features[twins]]),
        torch.cat([features.labels, features.labels[twins]]),
        torch.arange(100, 100 + 60 + len(twins)),
        contents=torch.cat([features.contents, features.contents[twins]]),
    )
    assert "left out (18 queries have some)" in retrieval(double)[0].protocol
    found = values(retrieval(double))
    without = {name: value for name, value in found.items() if "copies" not in name}
    counted = {name.split(",")[0]: value for name, value in found.items() if "copies" in name}
    assert without == pytest.approx(slow(double, double, (1, 2, 4, 8), own=True, copies=False))
    assert counted == pytest.approx(slow(double, double, (1, 2, 4, 8), own=True, copies=True))
    assert counted["recall@1"] > without["recall@1"]
    queries = replace(features.at(twins), uids=torch.arange(len(twins)))
    found = values(retrieval(features, queries))
    assert found["recall@1, copies counted"] == 1.0 > found["recall@1"]


def test_no_order_of_samples_changes_a_number():
    gallery, queries = blobs(50), blobs(40, seed=1)
    mixed = gallery.at(torch.randperm(50, generator=torch.Generator().manual_seed(3)))
    turned = queries.at(torch.arange(40).flip(0))
    settings = RetrievalSettings(ap_queries=15)
    assert retrieval(gallery, queries, settings) == retrieval(mixed, turned, settings)
    assert retrieval(gallery, None, settings) == retrieval(mixed, None, settings)


def test_chunks_change_nothing():
    features = blobs(64)
    whole = retrieval(features)
    assert retrieval(features, settings=RetrievalSettings(cells=64 * 5 + 3)) == whole
    assert retrieval(features, settings=RetrievalSettings(cells=1)) == whole


def test_some_keyed_queries_are_sorted_and_all_are_looked_up():
    features = blobs(90)
    whole, some = (
        values(measures)
        for measures in (
            retrieval(features),
            retrieval(features, settings=RetrievalSettings(ap_queries=30)),
        )
    )
    assert {k: v for k, v in some.items() if "recall" in k} == {
        k: v for k, v in whole.items() if "recall" in k
    }
    assert some["mAP"] != whole["mAP"]
    assert some["mAP"] == pytest.approx(whole["mAP"], abs=0.1)
    measure = retrieval(features, settings=RetrievalSettings(ap_queries=30))[-1]
    assert "whole rankings of 30 of them, keyed by seed 0" in measure.protocol


def test_one_point_for_all_finds_nothing():
    """Equal similarities count against the encoder, else a collapsed one would be perfect."""
    features = replace(blobs(40), features=torch.ones(40, 3))
    found = values(retrieval(features))
    assert found["recall@1"] == found["mAP@R"] == 0.0
    assert found["mAP"] < 0.2


def test_opposite_samples_come_last():
    """Negative similarities are ordered, too."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, 0.5], [-1.0, 2.0], [0.0, -1.0]])
    features = Features(z, torch.tensor([0, 0, 1, 1, 1]), torch.arange(5))
    expected = slow(with_contents(features), with_contents(features), (1, 2), own=True, copies=True)
    found = values(retrieval(features, settings=RetrievalSettings(ranks=(1, 2))))
    assert found == pytest.approx(expected)


def test_singletons_are_left_out_and_told():
    features = blobs(30, classes=3)
    alone = Features(
        torch.cat([features.features, torch.ones(2, 6)]),
        torch.cat([features.labels, torch.tensor([7, 8])]),
        torch.arange(32),
    )
    measure = retrieval(alone)[0]
    assert "30 queries" in measure.protocol
    assert "without 2 that have nothing to be found" in measure.protocol


def test_chance_is_that_of_random_rankings():
    rng = np.random.default_rng(0)
    rankings = np.array([rng.permutation([1] * 4 + [0] * 9) for _ in range(20_000)])
    found, places = np.array([4]), np.array([13])
    assert chance_of_hit(found, places, 3)[0] == pytest.approx(
        rankings[:, :3].any(1).mean(), abs=0.01
    )
    for depth in (4, 13):
        slow_mean = np.mean([slow_ap(row, depth) for row in rankings[:4000].tolist()])
        assert chance_of_ap(found, places, np.array([depth]))[0] == pytest.approx(
            slow_mean, abs=0.01
        )
    assert chance_of_hit(np.array([4]), np.array([5]), 2)[0] == 1.0


def test_what_cannot_be_measured():
    unlabelled = Features(torch.ones(3, 2), torch.full((3,), -1), torch.arange(3))
    with pytest.raises(SslpipeError, match="none of the 3 samples has a label"):
        retrieval(unlabelled)
    with pytest.raises(SslpipeError, match="all 3 labelled samples are of one class"):
        retrieval(replace(unlabelled, labels=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(SslpipeError, match="none of the 3 queries has another sample"):
        retrieval(replace(unlabelled, labels=torch.arange(3)))
    with pytest.raises(SslpipeError, match=r"ranks = \(0,\)"):
        RetrievalSettings(ranks=(0,))
