"""What is fetched ahead: in the order of need, within the room, and nothing of the past."""

import threading

import numpy as np
import pytest

from sslpipe.errors import ShardError
from sslpipe.stream.shard_lookahead import ShardLookahead


class Store:
    """Keeps what was wanted."""

    def __init__(self, room, sizes):
        self.room, self.fetched = room, np.array(sizes, dtype=np.int64)
        self.wanted = []

    def want(self, shards):
        self.wanted.append(list(shards))


def pairs(step):
    """Step t needs the shards t // 2 and t // 2 + 1, of 50."""
    return np.array([step // 2 % 50, (step // 2 + 1) % 50], dtype=np.int64)


def look(lookahead, step):
    lookahead.at(step)
    if lookahead._job is not None:
        lookahead._job.result()


def test_as_many_shards_as_the_room_holds_from_the_step_on():
    store = Store(90, [10] * 50)
    lookahead = ShardLookahead(pairs, store, epoch=1000)
    for step in (0, 1, 2, 10, 3):
        look(lookahead, step)
    lookahead.close()
    assert store.wanted == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [1, 2, 3, 4],  # a rewound stream
    ]


def test_a_reader_that_is_faster_is_followed_at_once_not_step_by_step():
    gate, begun = threading.Event(), threading.Event()
    gate.set()

    def slow(step):
        begun.set()
        gate.wait(5)
        return pairs(step)

    store = Store(90, [10] * 50)
    lookahead = ShardLookahead(slow, store, epoch=1000)
    gate.clear()
    begun.clear()
    lookahead.at(0)
    assert begun.wait(5)
    for step in (10, 20, 30):
        lookahead.at(step)
    gate.set()
    lookahead._job.result()
    lookahead.close()
    assert store.wanted == [[0, 1, 2, 3], [15, 16, 17, 18]]


def test_a_set_that_fits_is_wanted_whole_and_not_looked_for_without_end():
    store = Store(10_000, [10] * 50)
    lookahead = ShardLookahead(pairs, store, epoch=1000)
    for step in range(7, 90):
        look(lookahead, step)
    lookahead.close()
    assert store.wanted[0] == [*range(3, 37)]  # 64 steps in one go
    assert sorted(store.wanted[-1]) == [*range(50)]
    assert len(lookahead._steps) <= 4096


def test_local_shards_take_no_room_and_no_thread():
    store = Store(0, [0] * 50)
    lookahead = ShardLookahead(pairs, store, epoch=1000)
    look(lookahead, 0)
    assert store.wanted == []


def test_what_is_needed_at_a_time_must_fit():
    ShardLookahead(pairs, Store(2000, [1000] * 50), epoch=1000).close()
    message = r"2 shards of 2,000 bytes are needed at a time, the share .* is 1,999 bytes; raise"
    with pytest.raises(ShardError, match=message):
        ShardLookahead(pairs, Store(1999, [1000] * 50), epoch=1000)


def test_needed_at_a_time_are_shards_between_their_first_and_last_use():
    def returning(step):
        return np.array([0] if step in (0, 9) else [step % 9], dtype=np.int64)

    ShardLookahead(returning, Store(9 * 10, [10] * 9), epoch=1000).close()
    with pytest.raises(ShardError, match="9 shards of 90 bytes"):
        ShardLookahead(returning, Store(9 * 10 - 1, [10] * 9), epoch=1000)


def test_an_error_in_the_background_is_raised_at_the_next_step():
    def broken(step):
        if step > 130:
            raise ShardError("no more")
        return pairs(step)

    lookahead = ShardLookahead(broken, Store(10_000, [10] * 50), epoch=1000)
    lookahead.at(0)
    lookahead._job.result()  # 64 steps are fine
    look(lookahead, 5)
    lookahead.at(6)
    with pytest.raises(ShardError, match="no more"):
        lookahead._job.result()
    with pytest.raises(ShardError, match="no more"):
        lookahead.at(7)
    lookahead.close()
