import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import Features
from sslpipe.evaluate.few_labels import FewLabelsSettings, few_labels
from sslpipe.evaluate.linear import LogisticSettings
from sslpipe.evaluate.subsets import mean_of_draws, ranks_in_class

EXACT = LogisticSettings(grid=(1e-3, 1e-1, 10.0), tolerance=1e-6, choosing_tolerance=1e-6)
SMALL = FewLabelsSettings(fractions=(0.02, 0.1), draws=3, logistic=EXACT)
QUICK = replace(SMALL, draws=2, logistic=LogisticSettings(grid=(1e-3, 1.0)))


def data(count, *, seed=0, classes=3, dim=8):
    """Overlapping classes, in the order of their uids."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    x = centres[labels] + torch.randn(count, dim, generator=generator)
    uids = torch.randperm(10**6, generator=generator)[:count].sort().values
    return Features(x, labels, uids)


def of(measures):
    return {measure.name: measure for measure in measures}


def probe(c):
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=1000))


def slow(train, test, each, draws):
    """Accuracies of the draws: scikit-learn on the few, C by five folds of them or 1."""
    for draw in range(draws):
        ranks = ranks_in_class(train, seed=0, purpose="few labels", draw=draw)
        few, tested = train.at(ranks < each), train.at(ranks >= each) if test is None else test
        (x, y), fold = few.arrays(), ranks[ranks < each].numpy() % 5
        best = 1.0
        if each > 1:
            right = [
                sum(
                    (probe(c).fit(x[fold != i], y[fold != i]).predict(x[fold == i])
                     == y[fold == i]).sum()
                    for i in range(min(5, each))
                )
                for c in EXACT.grid
            ]  # fmt: skip
            best = EXACT.grid[int(np.argmax(right))]
        yield probe(best).fit(x, y).score(*tested.arrays())


@pytest.mark.parametrize("with_test", [True, False])
def test_it_is_scikit_learns_on_the_few(with_test):
    train, test = data(150), data(90, seed=1) if with_test else None
    found = of(few_labels(train, test, SMALL))
    assert list(found) == ["2% labels top-1", "10% labels top-1"]
    for name, each in (("2% labels top-1", 1), ("10% labels top-1", 5)):
        values = list(slow(train, test, each, 3))
        half = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)  # t, 2 degrees, 97.5 %
        assert found[name].value == pytest.approx(np.mean(values))
        assert found[name].interval == pytest.approx(half)
        assert found[name].chance == pytest.approx(1 / 3)
        assert f"on {each} label(s) per class, {3 * each} in all" in found[name].protocol
    assert 0.4 < found["2% labels top-1"].value < found["10% labels top-1"].value < 1.0
    assert ("the other samples" in found["2% labels top-1"].protocol) != with_test


def test_samples_that_are_left_out_are_not_used():
    """Junk in place of all samples that no draw takes changes nothing."""
    train, test = data(150), data(90, seed=1)
    ranks = [ranks_in_class(train, seed=0, purpose="few labels", draw=d) for d in range(2)]
    unused = torch.stack(ranks).amin(dim=0) >= 5
    assert unused.sum() > 50
    junk = torch.where(unused[:, None], torch.tensor(1e6), train.features)
    assert few_labels(replace(train, features=junk), test, QUICK) == few_labels(train, test, QUICK)


def test_test_labels_choose_nothing():
    train, test = data(150), data(90, seed=1)
    scrambled = replace(test, labels=test.labels.roll(1))
    lines = [[m.protocol for m in few_labels(train, t, QUICK)] for t in (test, scrambled)]
    assert lines[0] == lines[1]


def test_unequal_classes_give_equally_many_or_all_that_they_have():
    train = data(150)
    rare = train.at((train.labels > 0) | (torch.arange(150) < 6))  # 2, 50, 50
    found = few_labels(rare, data(30, seed=1), QUICK)[1]
    assert "on 3 label(s) per class, 8 in all" in found.protocol
    single = train.at((train.labels > 0) | (torch.arange(150) < 3))
    assert (
        "C=1, as a class has one sample" in few_labels(single, data(30, seed=1), QUICK)[1].protocol
    )


def test_copies_are_not_tested_on():
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(60, 100, generator=generator), torch.arange(60).repeat(2)
    seen = Features(x[rows], (torch.arange(60) % 2)[rows], torch.arange(120), contents=rows)
    settings = replace(QUICK, fractions=(0.5,))
    honest = few_labels(seen, None, settings)[0]
    blind = few_labels(replace(seen, contents=torch.empty(0)), None, settings)[0]
    assert "30 test samples" in honest.protocol
    assert abs(honest.value - 0.5) < 0.2
    assert blind.value > honest.value + 0.1


def test_the_order_of_rows_changes_nothing():
    train, test = data(150), data(90, seed=1)
    rows = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    assert few_labels(train.at(rows), test, QUICK) == few_labels(train, test, QUICK)
    assert few_labels(train.at(rows), None, QUICK) == few_labels(train, None, QUICK)
    other = few_labels(train, test, replace(QUICK, seed=1))
    assert other[0].value != few_labels(train, test, QUICK)[0].value


def test_a_single_draw_has_no_interval():
    (found,) = few_labels(data(150), None, replace(SMALL, fractions=(0.1,), draws=1))
    assert found.interval is None
    assert mean_of_draws([0.25]) == (0.25, None)
    assert mean_of_draws([0.0, 1.0]) == (0.5, pytest.approx(12.706204736 / 2))


def test_errors():
    train = data(30)
    with pytest.raises(SslpipeError, match="none of the 30 samples has a label"):
        few_labels(replace(train, labels=torch.full((30,), -1)))
    with pytest.raises(SslpipeError, match="few labels: 10 usable samples are of 1 class"):
        few_labels(train.at(train.labels == 1))
    with pytest.raises(SslpipeError, match=r"100% of 30 samples leaves none to test on"):
        few_labels(train, None, replace(SMALL, fractions=(1.0,)))
    with pytest.raises(SslpipeError, match=r"a fraction of 1.5; give more than 0, at most 1"):
        few_labels(train, None, replace(SMALL, fractions=(0.1, 1.5)))
    with pytest.raises(SslpipeError, match="0 draws; give 1 or more"):
        few_labels(train, None, replace(SMALL, draws=0))
    with pytest.raises(SslpipeError, match="are not finite"):
        few_labels(replace(train, features=train.features.log()))
