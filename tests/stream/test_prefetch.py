"""Prefetch: the same results at any depth, errors at their own step, clean restarts."""

import threading

import pytest

from sslpipe.stream.prefetch import Prefetch


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_results_do_not_depend_on_the_depth(depth):
    ahead = Prefetch(lambda step: step * step, depth=depth, name="test")
    assert [ahead.take(step) for step in range(7)] == [step * step for step in range(7)]
    assert ahead.take(3) == 9
    assert ahead.take(4) == 16
    assert ahead.take(100) == 10_000
    ahead.close()


def test_at_most_depth_steps_are_made_ahead():
    made, started = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 3:
            started.set()
        return step

    ahead = Prefetch(make, depth=3, name="test")
    assert ahead.take(0) == 0
    assert started.wait(10)
    ahead.close()
    assert made == [0, 1, 2, 3]


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_at_its_own_step_and_the_next_step_still_works(depth):
    def make(step):
        if step == 2:
            raise ValueError("two")
        return step

    ahead = Prefetch(make, depth=depth, name="test")
    assert [ahead.take(0), ahead.take(1)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        ahead.take(2)
    assert ahead.take(3) == 3
    ahead.close()


def test_at_rest_nothing_is_begun_that_is_not_asked_for():
    made = []
    ahead = Prefetch(lambda step: made.append(step) or step, depth=2, name="test")
    assert ahead.take(0) == 0
    assert ahead.rest() == 2
    assert made == [0, 1, 2]
    assert [ahead.take(step) for step in (1, 2)] == [1, 2]
    assert made == [0, 1, 2]
    assert ahead.take(3) == 3
    assert made == [0, 1, 2, 3]
    ahead.go_on()
    assert ahead.take(4) == 4
    assert ahead.rest() == 2
    assert made == [0, 1, 2, 3, 4, 5, 6]
    ahead.close()


def test_nothing_behind_the_end_is_made_ahead_and_whoever_asks_gets_it():
    made = []
    ahead = Prefetch(lambda step: made.append(step) or step, depth=3, name="test", end=3)
    assert [ahead.take(step) for step in range(3)] == [0, 1, 2]
    ahead.reset(3)  # waits for what is being made
    assert made == [0, 1, 2]
    assert [ahead.take(3), ahead.take(4)] == [3, 4]
    assert made == [0, 1, 2, 3, 4]
    ahead.close()
