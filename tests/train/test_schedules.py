import math

import numpy as np
import pytest

from sslpipe.train.schedules import RatePlan, cosine_rate, ended_epoch


def plan(total, warmup, lr=1.0, **more):
    return RatePlan(**{"length": 1, "weight_decay": 0.0, **more}, total=total, warmup=warmup, lr=lr)


def rates(plan):
    return [plan.lr_at(step) for step in range(plan.total)]


def dino_schedule(base, final, total, warmup, start=0.0):
    """`cosine_scheduler` of facebookresearch/dino, utils.py, written from its description."""
    ramp = np.linspace(start, base, warmup)
    steps = np.arange(total - warmup)
    curve = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([ramp, curve])


@pytest.mark.parametrize("start", [0.0, 1e-4])
@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (100, 0), (7, 1), (7, 2), (5, 4)])
def test_warmup_and_cosine_are_dinos(total, warmup, start):
    ours = rates(plan(total, warmup, 5e-4, final_lr=1e-6, warmup_lr=start))
    np.testing.assert_allclose(ours, dino_schedule(5e-4, 1e-6, total, warmup, start), rtol=1e-12)


def test_ends_of_the_warmup():
    rate = rates(plan(100, 10, 0.3))
    assert rate[0] == 0.0
    assert rate[9] == rate[10] == 0.3 == max(rate)
    assert 0 < rate[-1] < 1e-3 * 0.3


def test_a_cosine_per_epoch_is_mocos():
    """main_moco.py, adjust_learning_rate: lr * 0.5 * (1 + cos(pi * epoch / epochs))."""
    rate = rates(plan(21, 0, 0.03, schedule="cosine_per_epoch", length=3))
    expected = [0.03 * 0.5 * (1 + math.cos(math.pi * (s // 3) / 7)) for s in range(21)]
    np.testing.assert_allclose(rate, expected, rtol=1e-12)


def test_a_cosine_per_epoch_whose_steps_take_two_batches():
    """5 batches an epoch: steps 0, 1, 2 begin in epoch 0, steps 3, 4 in epoch 1."""
    rate = rates(plan(10, 0, schedule="cosine_per_epoch", length=5, accumulate=2))
    assert [rate.index(value) for value in rate] == [0, 0, 0, 3, 3, 5, 5, 5, 8, 8]


def test_a_cosine_per_epoch_stays_at_the_peak_until_the_epoch_of_the_warmup_ends():
    rate = rates(plan(12, 4, schedule="cosine_per_epoch", length=3))
    assert rate[3:6] == [1.0, 1.0, 1.0]
    assert rate[6] == rate[8] == pytest.approx(0.5 * (1 + math.cos(math.pi * 2 / 8)))


def test_milestones_are_epochs():
    rate = rates(plan(10, 2, 4.0, schedule="multistep", length=2, milestones=(2, 4), gamma=0.5))
    assert rate == [0.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]


def test_cosine_ends_are_exact():
    assert cosine_rate(0, total=10, start=0.04, end=0.4) == pytest.approx(0.04, abs=1e-15)
    assert cosine_rate(10, total=10, start=0.04, end=0.4) == 0.4
    assert cosine_rate(5, total=10, start=0.04, end=0.4) == pytest.approx(0.22)


def test_weight_decay_is_constant_or_a_cosine_without_warmup():
    constant = plan(10, 3, weight_decay=0.05)
    assert {constant.weight_decay_at(s) for s in range(10)} == {0.05}
    rising = plan(10, 3, weight_decay=0.04, final_weight_decay=0.4)
    np.testing.assert_allclose(
        [rising.weight_decay_at(s) for s in range(10)], dino_schedule(0.04, 0.4, 10, 0)
    )


def test_stretched_cosines_are_msns():
    """WarmupCosineSchedule and CosineWDSchedule of facebookresearch/msn, T_max = 1.25 * the run."""
    made = plan(
        100, 10, 1e-3, final_lr=1e-6, stretch=1.25, weight_decay=0.04, final_weight_decay=0.4
    )
    for step in range(10, 100):
        at = math.pi * (step - 10) / (1.25 * 100 - 10)
        assert made.lr_at(step) == pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(at)))
    for step in range(100):
        wd = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * step / 125))
        assert made.weight_decay_at(step) == pytest.approx(wd)


def changes(plan):
    """The steps whose rate is not that of the step before."""
    rate = rates(plan)
    return [step for step in range(1, plan.total) if rate[step] != rate[step - 1]]


@pytest.mark.parametrize(("length", "accumulate"), [(391, 6), (5, 3), (7, 10), (195, 1)])
@pytest.mark.parametrize("schedule", ["cosine_per_epoch", "multistep"])
def test_rates_per_epoch_change_with_the_step_that_follows_the_end(schedule, length, accumulate):
    """`ended_epoch` counts in integers, as rates must: 391 / 6 is no float."""
    epochs = 200
    total = epochs * length // accumulate
    made = plan(
        total, 0, schedule=schedule, length=length, accumulate=accumulate, gamma=0.99,
        milestones=tuple(range(1, epochs)) if schedule == "multistep" else (),
    )  # fmt: skip
    ends = [s for s in range(1, total) if ended_epoch(s, accumulate=accumulate, length=length)]
    assert changes(made) == ends


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5, 7])
def test_every_epoch_ends_once(accumulate):
    length = 5
    ended = [ended_epoch(s, accumulate=accumulate, length=length) for s in range(1, 43)]
    for step, epoch in enumerate(ended, start=1):
        taken = range((step - 1) * accumulate + 1, step * accumulate + 1)
        completed = [batch // length for batch in taken if batch % length == 0]
        assert epoch == (completed[-1] if completed else None)


def test_a_line_is_berts():
    """Up to the peak, then straight to the end, which it would reach one step after the last."""
    rate = rates(plan(14, 4, 0.5, schedule="linear", final_lr=0.1))
    np.testing.assert_allclose(rate[:4], [0, 0.5 / 3, 1 / 3, 0.5])
    np.testing.assert_allclose(rate[4:], 0.5 - 0.04 * np.arange(10))


def test_a_line_without_slope_stays():
    assert rates(plan(9, 0, 0.01, schedule="cosine", final_lr=0.01)) == [0.01] * 9
    assert rates(plan(9, 0, 0.01, schedule="linear", final_lr=0.01)) == [0.01] * 9
