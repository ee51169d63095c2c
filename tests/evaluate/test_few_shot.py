import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import normalize

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import Features
from sslpipe.evaluate.episodes import EpisodeSettings, draw, samples, without_replacement
from sslpipe.evaluate.few_shot import FewShotSettings, few_shot
from sslpipe.evaluate.linear import LogisticSettings
from sslpipe.evaluate.subsets import ranks_in_class

SMALL = FewShotSettings(
    shots=(1, 3),
    draws=3,
    logistic=LogisticSettings(grid=(0.1, 10.0), tolerance=1e-6, choosing_tolerance=1e-6),
    episodes=EpisodeSettings(ways=3, queries=4, count=30),
)


def data(count, *, seed=0, classes=5, dim=6, offset=0.0):
    """Classes that overlap, numbered 3, 5, 7, ..., in the order of their uids."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = 1.5 * torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    x = centres[labels] + torch.randn(count, dim, generator=generator) + offset
    uids = torch.randperm(10**6, generator=generator)[:count].sort().values
    return Features(x, labels * 2 + 3, uids)


def of(measures):
    return {measure.name: measure for measure in measures}


def unit(features):
    return normalize(features.features.double().numpy())


def slow_all_way(train, test, settings):
    """name -> accuracies of the draws, by scikit-learn's classifiers and loops over folds."""
    found = {f"{n}-shot {c}": [] for n in settings.shots for c in ("prototypes", "1-NN", "linear")}
    most = max(settings.shots)
    for number, n in itertools.product(range(settings.draws), settings.shots):
        ranks = ranks_in_class(train, seed=settings.seed, purpose="few-shot", draw=number)
        few, queries = train.at(ranks < n), train.at(ranks >= most) if test is None else test
        x, y, q, truth = unit(few), few.labels.numpy(), unit(queries), queries.labels.numpy()
        nearest = KNeighborsClassifier(1, algorithm="brute").fit(x, y)
        found[f"{n}-shot 1-NN"].append(nearest.score(q, truth))
        means = np.stack([x[y == c].mean(axis=0) for c in np.unique(y)])
        guess = np.unique(y)[(q @ normalize(means).T).argmax(axis=1)]
        found[f"{n}-shot prototypes"].append((guess == truth).mean())
        best = slow_c(x, y, n, settings.logistic.grid)
        found[f"{n}-shot linear"].append(regression(best).fit(x, y).score(q, truth))
    return found


def regression(c):
    return LogisticRegression(C=c, tol=1e-8, max_iter=1000)


def slow_c(x, y, n, grid):
    """Leave one shot of every class out in turn; a single shot: the C of MSN."""
    if n == 1:
        return 4000.0
    place = np.array([int((y[:i] == label).sum()) for i, label in enumerate(y)])
    right = [
        sum(
            (regression(c).fit(x[place != i], y[place != i]).predict(x[place == i])
             == y[place == i]).sum()
            for i in range(n)
        )
        for c in grid
    ]  # fmt: skip
    return grid[int(np.argmax(right))]


@pytest.mark.parametrize("with_test", [True, False])
def test_all_ways_are_those_of_slow_classifiers(with_test):
    train, test = data(100), data(80, seed=1) if with_test else None
    found = of(few_shot(train, test, SMALL))
    for name, values in slow_all_way(train, test, SMALL).items():
        # a regression in float32 answers one query in hundreds otherwise than one in float64
        close = 0.005 if name.endswith("linear") else 1e-9
        assert found[name].value == pytest.approx(np.mean(values), abs=close), name
        # Student's t of two degrees of freedom at 97.5 %: 4.3027
        half = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)
        assert found[name].interval == pytest.approx(half, abs=4 * close), name
    assert 0.3 < found["1-shot 1-NN"].value < found["3-shot prototypes"].value < 1.0
    assert found["1-shot 1-NN"].chance == 0.2


def slow_episodes(train, test, drawn, shots, space):
    """Accuracies of the episodes, one query at a time."""
    mean = train.features.mean(0)

    def moved(x):
        return x if space == "UN" else (x - mean) / (x - mean).norm()

    for support, queries in zip(drawn.support, drawn.queries, strict=True):
        prototypes = [
            torch.stack([moved(train.features[row]) for row in rows[:shots]]).mean(0)
            for rows in support
        ]
        right = []
        for way, rows in enumerate(queries):
            for row in rows:
                gaps = [(moved(test.features[row]) - p).norm() for p in prototypes]
                right.append(gaps.index(min(gaps)) == way)
        yield sum(right) / len(right)


@pytest.mark.parametrize("with_test", [True, False])
def test_episodes_are_the_slow_loops(with_test):
    train, test = data(100, offset=3.0), data(80, seed=1, offset=3.0) if with_test else None
    found = of(few_shot(train, test, SMALL))
    drawn, _ = draw(train, test, 3, 0, SMALL.episodes)
    for n, space in itertools.product((1, 3), ("UN", "CL2N")):
        values = list(slow_episodes(train, test or train, drawn, n, space))
        measure = found[f"3-way {n}-shot {space}"]
        assert measure.value == pytest.approx(np.mean(values))
        assert measure.interval == pytest.approx(1.96 * np.std(values, ddof=1) / math.sqrt(30))
        assert measure.chance == 1 / 3
    assert found["3-way 1-shot UN"].value != found["3-way 1-shot CL2N"].value


@pytest.mark.parametrize("with_test", [True, False])
def test_an_episode_has_different_classes_and_samples(with_test):
    train, test = data(100), data(80, seed=1) if with_test else None
    drawn, _ = draw(train, test, 3, 0, EpisodeSettings(ways=3, queries=4, count=200))
    bank, tested = train.labels.numpy(), (test or train).labels.numpy()
    for support, queries in zip(drawn.support, drawn.queries, strict=True):
        classes = bank[support[:, 0]]
        assert len(set(classes)) == 3
        assert (bank[support] == classes[:, None]).all()
        assert (tested[queries] == classes[:, None]).all()
        rows = [*support.ravel(), *(() if with_test else queries.ravel())]
        assert len(set(rows)) == len(rows)
        assert len(set(queries.ravel())) == queries.size
    pairs = Counter(tuple(sorted(set(bank[s[:, 0]]))) for s in drawn.support)
    assert len(pairs) == 10  # every choice of 3 of 5 classes
    assert min(pairs.values()) > 5


def test_choices_without_replacement_are_uniform():
    uniform = np.random.default_rng(0).random((24_000, 3))
    chosen = without_replacement(np.full(24_000, 4), uniform)
    counts = Counter(map(tuple, chosen.tolist()))
    assert set(counts) == set(itertools.permutations(range(4), 3))
    assert 850 < min(counts.values()) <= max(counts.values()) < 1150  # 1,000 each, 31 deviation
    sizes = np.array([3, 50])
    whole = without_replacement(sizes, np.random.default_rng(1).random((2, 3)))
    assert sorted(whole[0]) == [0, 1, 2]


def test_all_samples_of_a_class_are_drawn_alike():
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1])
    rows = samples(labels, np.ones((4000, 1), dtype=np.int64), 2, 0, "x")
    counts = Counter(rows.ravel().tolist())
    assert set(counts) == {1, 2, 4, 6, 7}
    assert all(1480 < count < 1720 for count in counts.values())  # 1,600 each


def test_one_shot_prototypes_are_nearest_neighbours():
    found = of(few_shot(data(100), data(80, seed=1), SMALL))
    assert found["1-shot prototypes"].value == found["1-shot 1-NN"].value
    assert found["3-shot prototypes"].value != found["3-shot 1-NN"].value


def test_prototypes_are_scikit_learns_centroids_in_episodes():
    train, test = data(100), data(80, seed=1)
    drawn, _ = draw(train, test, 3, 0, SMALL.episodes)
    x, q = train.features.numpy(), test.features.numpy()
    y, truth = train.labels.numpy(), test.labels.numpy()
    values = [
        NearestCentroid().fit(x[s.ravel()], y[s.ravel()]).score(q[r.ravel()], truth[r.ravel()])
        for s, r in zip(drawn.support, drawn.queries, strict=True)
    ]
    assert of(few_shot(train, test, SMALL))["3-way 3-shot UN"].value == pytest.approx(
        np.mean(values)
    )


def test_the_order_of_rows_changes_nothing():
    train, test = data(100), data(80, seed=1)
    rows, others = (
        torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (100, 80)
    )
    assert few_shot(train.at(rows), test.at(others), SMALL) == few_shot(train, test, SMALL)
    assert few_shot(train.at(rows), None, SMALL) == few_shot(train, None, SMALL)
    seeds = [of(few_shot(train, None, replace(SMALL, seed=seed))) for seed in (0, 1)]
    assert seeds[0]["3-way 1-shot UN"].value != seeds[1]["3-way 1-shot UN"].value


def test_copies_are_no_queries():
    """Labels are random, so that only copies are recognised."""
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(60, 50, generator=generator), torch.arange(60).repeat(3)
    labels = (torch.arange(60) % 2)[rows]
    seen = Features(x[rows], labels, torch.arange(180), contents=rows)
    settings = replace(SMALL, episodes=EpisodeSettings(ways=2, queries=10, count=50))
    honest, blind = (
        of(few_shot(f, None, settings)) for f in (seen, replace(seen, contents=torch.empty(0)))
    )
    assert abs(honest["3-shot 1-NN"].value - 0.5) < 0.1
    assert blind["3-shot 1-NN"].value > honest["3-shot 1-NN"].value
    test = seen.at(torch.arange(60))
    line = few_shot(seen, test, settings)[0].protocol
    assert "60 queries, a test set, 60 of them exact copies of training samples" in line


def test_small_classes_are_left_out_and_it_is_said():
    train, test = data(100), data(80, seed=1)
    keep = (train.labels > 3) | (torch.arange(100) < 10)  # two of class 3
    found = of(few_shot(train.at(keep), test, SMALL))
    assert "64 queries" in found["1-shot 1-NN"].protocol
    assert "without 1 class(es) of fewer than 3 samples" in found["1-shot 1-NN"].protocol
    assert "without 1 class(es) of fewer than 3 samples" in found["3-way 1-shot UN"].protocol
    two = train.at(train.labels < 7)
    assert "2-way 1-shot UN" in of(few_shot(two, None, SMALL))


def test_unlabelled_samples_are_ignored():
    train = data(100)
    more = Features(
        torch.cat([train.features, torch.full((5, 6), 1e3)]),
        torch.cat([train.labels, torch.full((5,), -1)]),
        torch.arange(105),
    )
    known = replace(train, uids=torch.arange(100))
    assert few_shot(more, None, SMALL) == few_shot(known, None, SMALL)


def test_errors():
    train = data(100)
    with pytest.raises(SslpipeError, match="none of the 100 samples has a label"):
        few_shot(replace(train, labels=torch.full((100,), -1)))
    with pytest.raises(SslpipeError, match="100 usable samples are of 1 class"):
        few_shot(replace(train, labels=torch.zeros(100).long()))
    with pytest.raises(SslpipeError, match="0 of 5 classes have the 31 samples"):
        few_shot(train, None, replace(SMALL, shots=(30,)))
    with pytest.raises(SslpipeError, match="few-shot episodes: 0 of 5 classes have the 19 samples"):
        few_shot(data(90), None, replace(SMALL, episodes=EpisodeSettings(queries=16)))
    with pytest.raises(SslpipeError, match="give 1 or more of each"):
        few_shot(train, None, replace(SMALL, shots=(0, 1)))
    with pytest.raises(SslpipeError, match="give at least 2, 2 and 1"):
        few_shot(train, None, replace(SMALL, episodes=EpisodeSettings(ways=1)))
    with pytest.raises(SslpipeError, match="are not finite"):
        few_shot(replace(train, features=train.features.log()))
