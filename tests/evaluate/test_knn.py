import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import Features, knn, leave_one_out
from sslpipe.evaluate.knn import NeighbourSettings, neighbours, similarities, votes


def blobs(count, *, classes=7, dim=5, seed=0, offset=0):
    """Overlapping classes of unequal norms, whose ids are not 0..K-1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    ids = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    scale = torch.rand(count, 1, generator=generator) + 0.1
    return Features((centres[ids] + 2 * noise) * scale, ids * 10 + offset, torch.arange(count))


def slow_votes(bank, query_D, k, temperature, skip=None):
    """{label: votes} of one query, one neighbour at a time."""
    found = []
    for index, (z_D, label) in enumerate(zip(bank.features, bank.labels.tolist(), strict=True)):
        if index != skip:
            cosine = (z_D @ query_D / (z_D.norm() * query_D.norm())).item()
            found.append((cosine, label))
    votes = {}
    for cosine, label in sorted(found, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
    return votes


def slow_accuracy(ranks, votes, labels):
    hits = 0
    for vote_of, label in zip(votes, labels.tolist(), strict=True):
        hits += label in sorted(vote_of, key=vote_of.get, reverse=True)[:ranks]
    return hits / len(labels)


def test_it_is_the_slow_loop():
    bank, queries = blobs(60), blobs(40, seed=1)
    votes = [slow_votes(bank, q, 20, 0.07) for q in queries.features]
    result = knn(bank, queries)
    assert result.top1 == pytest.approx(slow_accuracy(1, votes, queries.labels))
    assert result.top5 == pytest.approx(slow_accuracy(5, votes, queries.labels))
    assert 0.3 < result.top1 < result.top5 < 1.0
    assert (result.k, result.queries, result.bank, result.classes) == (20, 40, 60, 7)


def test_leave_one_out_is_the_slow_loop():
    features = blobs(50)
    votes = [slow_votes(features, q, 9, 0.1, skip=i) for i, q in enumerate(features.features)]
    result = leave_one_out(features, k=9, temperature=0.1)
    assert result.top1 == pytest.approx(slow_accuracy(1, votes, features.labels))
    assert result.top5 == pytest.approx(slow_accuracy(5, votes, features.labels))


def test_it_is_scikit_learns():
    bank, queries = blobs(200), blobs(100, seed=1)
    model = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    model.fit(bank.features.double().numpy(), bank.labels.numpy())
    expected = model.score(queries.features.double().numpy(), queries.labels.numpy())
    assert knn(bank, queries).top1 == pytest.approx(expected)


def test_a_sample_is_not_its_own_neighbour():
    """Two classes on opposite points of a square: the nearest other sample is always wrong."""
    corners = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, 0.1]])
    features = Features(corners, torch.tensor([0, 1, 0, 1]), torch.arange(4))
    assert leave_one_out(features, k=1).top1 == 0.0
    assert knn(features, features, k=1).top1 == 1.0


def test_k_is_capped():
    bank, queries = blobs(6), blobs(5, seed=1)
    assert knn(bank, queries, k=200).k == 6
    assert leave_one_out(bank, k=200).k == 5


def test_top5_needs_five_classes_and_a_vote():
    assert knn(blobs(30, classes=4), blobs(9, classes=4)).top5 is None
    # five classes, but the one neighbour has a single label: the other four have no votes
    bank = Features(torch.eye(5), torch.arange(5), torch.arange(5))
    queries = Features(torch.eye(5), torch.arange(5).roll(1), torch.arange(5))
    assert knn(bank, queries, k=1).top5 == 0.0


def test_labels_unknown_to_the_bank_are_wrong():
    assert knn(blobs(30), blobs(30, offset=1)).top1 == 0.0


def test_unlabelled_samples_are_ignored():
    bank, queries = blobs(60), blobs(40, seed=1)
    junk = torch.full((10, 5), 3.0)

    def padded(f):
        labels = torch.cat([torch.full((10,), -1), f.labels])
        return Features(torch.cat([junk, f.features]), labels, torch.arange(len(labels)))

    assert knn(padded(bank), padded(queries)) == knn(bank, queries)
    assert leave_one_out(padded(bank)) == leave_one_out(bank)


def test_without_labels():
    nothing = Features(torch.ones(4, 2), torch.full((4,), -1), torch.arange(4))
    with pytest.raises(SslpipeError, match="none of the 4 samples has a label"):
        knn(nothing, blobs(5))
    with pytest.raises(SslpipeError, match="1 labelled sample has no neighbours"):
        leave_one_out(blobs(1))


def test_chunks_change_nothing():
    bank_ND, query_QD = blobs(30).features, blobs(23, seed=1).features
    ((_, whole),) = similarities(query_QD, bank_ND)
    chunks = list(similarities(query_QD, bank_ND, cells=30 * 4 + 29))
    assert [(start, len(part)) for start, part in chunks] == [
        (0, 4), (4, 4), (8, 4), (12, 4), (16, 4), (20, 3),
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat([part for _, part in chunks]), whole)
    torch.testing.assert_close(whole, normalize(query_QD) @ normalize(bank_ND).T)


def test_votes_at_small_temperatures_are_finite_and_there_is_always_one():
    rows = torch.tensor([[1.0, 0.99, -1.0], [-0.2, -0.3, -0.9]])
    (found,) = votes(rows, torch.tensor([0, 1, 1]), 2, [3], 0.001)
    assert found.isfinite().all()
    assert found.argmax(dim=1).tolist() == [0, 0]


def of(measures):
    return {measure.name: measure.value for measure in measures}


def shuffled(features, seed=5):
    order = torch.randperm(len(features.labels), generator=torch.Generator().manual_seed(seed))
    return features.at(order)


def test_every_k_is_the_same_as_alone():
    """One pass for all of them, against one pass for each, against loops."""
    bank, queries = blobs(60), blobs(40, seed=1)
    found = of(neighbours(bank, queries, NeighbourSettings((20, 1, 7), temperature=0.5)))
    assert list(found) == [f"knn{k} top-{top}" for k in (1, 7, 20) for top in (1, 5)]
    for k in (1, 7, 20):
        cast = [slow_votes(bank, q, k, 0.5) for q in queries.features]
        assert found[f"knn{k} top-1"] == pytest.approx(slow_accuracy(1, cast, queries.labels))
        assert found[f"knn{k} top-5"] == pytest.approx(slow_accuracy(5, cast, queries.labels))
        assert found[f"knn{k} top-1"] == knn(bank, queries, k=k, temperature=0.5).top1
    assert len(set(found.values())) > 3


def test_every_k_leaves_each_sample_out():
    found = of(neighbours(blobs(50)))
    for k in (10, 20):
        assert found[f"knn{k} top-1"] == leave_one_out(blobs(50), k=k).top1


def test_a_capped_k_is_reported_once():
    found = neighbours(blobs(31))
    assert [m.name for m in found if m.name.endswith("top-1")] == [
        "knn10 top-1", "knn20 top-1", "knn30 top-1",
    ]  # fmt: skip
    assert "k=30, all there are for k=100, 200, T=0.07" in found[-1].protocol
    assert "all there are" not in found[0].protocol


def with_copies():
    """40 samples; 0 to 4 are there three times, which leave-one-out must not profit from."""
    data = blobs(40)
    rows = torch.cat([torch.arange(40), *[torch.arange(5)] * 2])
    copied = data.at(rows)
    return Features(copied.features, copied.labels, torch.arange(50) * 7, contents=rows * 11)


def test_exact_copies_are_no_neighbours():
    data, expected = with_copies(), []
    for query, content in zip(data.features, data.contents, strict=True):
        bank = data.at(data.contents != content)
        expected.append(slow_votes(bank, query, 9, 0.07))
    result = leave_one_out(data, k=9)
    assert result.top1 == pytest.approx(slow_accuracy(1, expected, data.labels))
    blind = Features(data.features, data.labels, data.uids)
    assert leave_one_out(blind, k=1).top1 > leave_one_out(data, k=1).top1 + 0.1


def test_copies_in_the_test_set_are_counted():
    data = with_copies()
    line = neighbours(data.at(torch.arange(30)), data.at(torch.arange(25, 50)))[0].protocol
    assert "25 queries, a test set, 15 of them exact copies of training samples" in line


def test_the_order_of_rows_changes_nothing():
    bank, queries = blobs(60), blobs(40, seed=1)
    coarse = replace(bank, features=bank.features.round())  # many ties
    assert neighbours(shuffled(coarse), shuffled(queries)) == neighbours(coarse, queries)
    assert neighbours(shuffled(with_copies())) == neighbours(with_copies())


def test_chance_is_the_largest_class():
    train = Features(torch.eye(4), torch.tensor([0, 1, 1, 2]), torch.arange(4))
    test = Features(torch.eye(4)[:2], torch.tensor([1, 0]), torch.arange(2))
    assert neighbours(train, test)[0].chance == 0.5
    assert neighbours(blobs(40), blobs(40))[1].chance == 5 / 7


def test_errors_of_the_protocol():
    nothing = Features(torch.ones(4, 2), torch.full((4,), -1), torch.arange(4))
    with pytest.raises(SslpipeError, match="none of the 4 samples has a label"):
        neighbours(nothing)
    with pytest.raises(SslpipeError, match=r"k-NN: 6 usable samples are of 1 class"):
        neighbours(blobs(6, classes=1))
    with pytest.raises(SslpipeError, match="k=0; give 1 or more"):
        neighbours(blobs(60), None, NeighbourSettings(ks=(0, 10)))
    same = replace(blobs(5), contents=torch.zeros(5))
    with pytest.raises(SslpipeError, match="5 labelled samples with the same bytes have no"):
        leave_one_out(same)
    with pytest.raises(SslpipeError, match="uid 1 are not finite"):
        neighbours(Features(torch.tensor([[1.0], [math.nan]]), torch.arange(2), torch.arange(2)))
