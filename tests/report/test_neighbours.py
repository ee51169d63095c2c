import math

import pytest
import torch

from sslpipe.evaluate import Features, knn
from sslpipe.evaluate.knn import leave_one_out
from sslpipe.report.neighbours import among, left_out
from tests.report.conftest import cloud


@pytest.fixture
def bank():
    """60 samples of 4 classes; 3 and 11 are the same picture."""
    labels = torch.arange(60) % 4
    features = cloud(labels, 8, seed=0, apart=0.7)
    features[11] = features[3]
    contents = torch.arange(60)
    contents[11] = 3
    return Features(features, labels, torch.arange(60) + 500, contents=contents)


def brute_force(query, own, bank, k):
    """Sorted (cosine, row) of the nearest, and the class with most votes."""
    cosines = []
    for row, other in enumerate(bank.features.double().tolist()):
        if own is not None and bank.contents[row] == bank.contents[own]:
            continue
        if int(bank.labels[row]) < 0:
            continue
        dot = sum(a * b for a, b in zip(query, other, strict=True))
        cosines.append((dot / math.hypot(*query) / math.hypot(*other), row))
    near = sorted(cosines, reverse=True)[:k]
    votes = {}
    for cosine, row in near:
        label = int(bank.labels[row])
        votes[label] = votes.get(label, 0) + math.exp((cosine - 1) / 0.07)
    return near, max(votes, key=votes.get)


def test_left_out_equals_brute_force_without_duplicates(bank):
    bank.labels[20] = -1
    rows = torch.tensor([3, 11, 0, 59])
    found = left_out(bank, rows, k=9)
    for i, row in enumerate(rows.tolist()):
        near, guess = brute_force(bank.features[row].double().tolist(), row, bank, 9)
        assert found.rows_QX[i].tolist() == [r for _, r in near]
        assert found.cosines_QX[i].tolist() == pytest.approx([c for c, _ in near], abs=1e-5)
        assert int(found.predicted[i]) == guess
    assert not {3, 11} & set(found.rows_QX[:2].flatten().tolist())


def test_among_equals_brute_force_and_the_protocol(bank):
    labels = torch.arange(30) % 4
    queries = Features(cloud(labels, 8, seed=0, apart=0.7) + 0.1, labels, torch.arange(30))
    found = among(bank, queries)
    for i, query in enumerate(queries.features.double().tolist()):
        near, guess = brute_force(query, None, bank, 20)
        assert set(found.rows_QX[i].tolist()) == {r for _, r in near}
        assert int(found.predicted[i]) == guess
    right = (found.predicted == labels).float().mean().item()
    assert right == pytest.approx(knn(bank, queries).top1)


def test_left_out_is_the_protocol_where_nothing_is_repeated(bank):
    unique = Features(bank.features, bank.labels, bank.uids)
    found = left_out(unique, torch.arange(60))
    right = (found.predicted == unique.labels).float().mean().item()
    assert right == pytest.approx(leave_one_out(unique).top1)


def test_a_small_bank_has_fewer_neighbours_and_no_labels_no_prediction(bank):
    few = bank.at(torch.tensor([3, 11, 0]))
    found = left_out(few, torch.arange(3))
    assert found.cosines_QX.isfinite().sum(dim=1).tolist() == [1, 1, 2]
    unlabelled = Features(bank.features, torch.full((60,), -1), bank.uids)
    found = left_out(unlabelled, torch.arange(60))
    assert (found.predicted == -1).all()
    assert found.cosines_QX.isfinite().all()
