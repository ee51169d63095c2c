import numpy as np
import pytest

from sslpipe.train.schedules import Plan, cosine, ended_epoch, warmup_cosine


def dino_schedule(base, final, total, warmup, start=0.0):
    """`cosine_scheduler` of facebookresearch/dino, utils.py, written from its description."""
    ramp = np.linspace(start, base, warmup)
    steps = np.arange(total - warmup)
    curve = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([ramp, curve])


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (100, 0), (7, 1), (7, 2), (5, 4)])
def test_warmup_cosine_is_dinos(total, warmup):
    ours = [
        warmup_cosine(s, total=total, warmup=warmup, peak=5e-4, final=1e-6) for s in range(total)
    ]
    np.testing.assert_allclose(ours, dino_schedule(5e-4, 1e-6, total, warmup), rtol=1e-12)


def test_ends_of_the_warmup():
    rate = [warmup_cosine(s, total=100, warmup=10, peak=0.3, final=0.0) for s in range(100)]
    assert rate[0] == 0.0
    assert rate[9] == rate[10] == 0.3 == max(rate)
    assert 0 < rate[-1] < 1e-3 * 0.3


def test_cosine_ends_are_exact():
    assert cosine(0, total=10, start=0.04, end=0.4) == pytest.approx(0.04, abs=1e-15)
    assert cosine(10, total=10, start=0.04, end=0.4) == 0.4
    assert cosine(5, total=10, start=0.04, end=0.4) == pytest.approx(0.22)


def test_weight_decay_is_constant_or_a_cosine_without_warmup():
    constant = Plan(10, 3, 1.0, 0.0, 0.05, None)
    assert {constant.weight_decay_at(s) for s in range(10)} == {0.05}
    rising = Plan(10, 3, 1.0, 0.0, 0.04, 0.4)
    np.testing.assert_allclose(
        [rising.weight_decay_at(s) for s in range(10)], dino_schedule(0.04, 0.4, 10, 0)
    )


def test_a_warmup_longer_than_the_run_never_reaches_the_peak():
    rates = [warmup_cosine(s, total=5, warmup=10, peak=9.0, final=0.0) for s in range(5)]
    assert rates == pytest.approx([0, 1, 2, 3, 4])


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 7])
def test_every_epoch_ends_once(accumulate):
    length = 5
    ended = [ended_epoch(s, accumulate=accumulate, length=length) for s in range(1, 43)]
    for step, epoch in enumerate(ended, start=1):
        taken = range((step - 1) * accumulate + 1, step * accumulate + 1)
        completed = [batch // length for batch in taken if batch % length == 0]
        assert epoch == (completed[-1] if completed else None)
