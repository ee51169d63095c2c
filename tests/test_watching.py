"""watch: what data costs inside a loop of anyone's, and no batch changes by it."""

import time

import pytest

import sslpipe
from sslpipe.errors import RecipeError, SslpipeError

from .streaming import load, trace


class Clock:
    """Time that stands still but where a test lets it pass."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_what_steps_take_beyond_those_at_rest_is_lost(packed, clock):
    """Steps of 1 s at rest and 2 s beside the pipeline, by a clock that the test sets."""
    with load(packed, "stream.batch_size=4") as pipe, sslpipe.watch(pipe) as watched:
        for _ in range(3):
            for _ in pipe:
                clock.now += 1.0 if watched._resting else 2.0
    assert watched.lost == pytest.approx(0.5)
    assert watched.waited == 0.0
    assert (watched.rate, watched.possible) == (pytest.approx(2.0), pytest.approx(4.0))
    assert "lost to data 50.0%, waiting for batches 0.0%" in watched.summary


def test_batches_stay_what_they_are(packed):
    with load(packed) as pipe:
        plain = trace(batch for _ in range(4) for batch in pipe)
    with load(packed) as pipe, sslpipe.watch(pipe, batches_per_step=2) as watched:
        seen = trace(batch for _ in range(4) for batch in pipe)
    assert seen == plain
    assert pipe.observers == []
    assert watched.lost >= watched.waited


def test_the_verdict_speaks_as_bench_and_the_stream_goes_on(packed):
    with load(packed, "stream.batch_size=4") as pipe, sslpipe.watch(pipe) as watched:
        for _ in pipe:
            time.sleep(0.005)
        step = pipe.step
        assert watched.verdict(seconds=0.05).startswith("The bottleneck is ")
        assert pipe.step == step


def test_what_cannot_be_watched_is_told(packed):
    with load(packed) as pipe:
        with pytest.raises(RecipeError, match=r"batches_per_step = 3 with run.prefetch = 2"):
            sslpipe.watch(pipe, batches_per_step=3)
        with sslpipe.watch(pipe) as watched:
            next(iter(pipe))
        with pytest.raises(SslpipeError, match="watch ten or more"):
            _ = watched.lost
