"""Slots of shared memory: given out again when nobody looks into them, and bounded."""

import errno
import gc
import mmap
import os
import random
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from sslpipe.device.slots import PAGE, Slots, address_of
from sslpipe.errors import SslpipeError


@pytest.fixture
def slots():
    made = Slots()
    yield made
    made.close()


def test_a_slot_is_given_out_again_when_its_last_view_is_gone(slots):
    slot = slots.take(1000)
    start, memory = slot.start, slot.memory
    view = torch.from_numpy(memory)[10:20].view(2, 5)
    del slot, memory
    other = slots.take(1000)
    assert other.start != start  # `view` is there
    view.fill_(7)
    other.memory[:] = 1
    assert view.eq(7).all()
    del view
    gc.collect()
    third = slots.take(1000)
    assert third.start == start
    assert slots.bytes == 2 * PAGE


def test_slots_do_not_overlap_and_hold_what_was_asked_for(slots):
    rng, kept = random.Random(0), []
    for number in range(200):
        size = rng.randrange(1, 3 * PAGE)
        slot = slots.take(size)
        assert len(slot.memory) >= size
        slot.memory[:size] = number % 251
        kept.append((number % 251, size, slot))
        if rng.random() < 0.8:
            kept.pop(rng.randrange(len(kept)))
        for value, length, other in kept[-3:]:
            assert (other.memory[:length:997] == value).all()
    ends = sorted((s.start, s.start + len(s.memory)) for *_, s in kept)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_what_is_kept_is_bounded_by_what_was_in_use(slots):
    rng = random.Random(1)
    for _ in range(300):
        del_me = [slots.take(rng.randrange(1, 4 * PAGE)) for _ in range(3)]
        assert len(del_me) == 3
        del del_me
    assert slots.bytes <= 6 * 4 * PAGE
    assert os.fstat(slots.file).st_blocks * 512 <= slots.bytes  # the rest of the file is empty


def test_a_much_larger_slot_is_not_spent_on_little(slots):
    large = slots.take(10 * PAGE)
    start = large.start
    del large
    small = slots.take(2 * PAGE)
    assert small.start != start
    assert len(small.memory) < 10 * PAGE


class Pins:
    """Stands for a device, which refuses to pin an address twice."""

    def __init__(self):
        self.pinned, self.order = {}, []

    def pin(self, address, size):
        assert address not in self.pinned
        self.pinned[address] = size
        self.order.append("pin")

    def unpin(self, address):
        del self.pinned[address]
        self.order.append("unpin")


@pytest.mark.parametrize("closed", [True, False])
def test_slots_in_use_at_the_end_are_unpinned_when_they_are_gone(closed):
    pins = Pins()
    slots = Slots(pin=pins.pin, unpin=pins.unpin)
    used, free = slots.take(1000), slots.take(1000)
    del free
    if closed:
        slots.close()
        assert len(pins.pinned) == 1
    del slots
    used.memory[:] = 3  # mapped still
    assert used.memory.ctypes.data in pins.pinned
    del used
    gc.collect()
    assert pins.pinned == {}
    assert pins.order == ["pin", "pin", "unpin", "unpin"]


def test_memory_that_is_pinned_is_unpinned_before_it_goes():
    pins = Pins()
    pinned = pins.pinned
    slots = Slots(pin=pins.pin, unpin=pins.unpin)
    first = slots.take(100)
    assert pinned == {first.memory.ctypes.data: PAGE}
    del first
    slots.take(100 * PAGE)  # in place of the first
    assert list(pinned.values()) == [100 * PAGE]
    slots.close()
    assert pinned == {}
    assert pins.order == ["pin", "unpin", "pin", "unpin"]


@pytest.mark.parametrize(
    ("limit", "number"), [("ulimit -f", errno.EFBIG), ("ulimit -v", errno.ENOMEM)]
)
def test_memory_that_the_system_does_not_give_is_told_with_its_limit(
    slots, monkeypatch, limit, number
):
    kept = slots.take(1000)

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "ftruncate", refused)
    words = f"shared memory: 4 MB for a batch: {os.strerror(number)}; raise the limit ({limit})"
    with pytest.raises(SslpipeError, match=re.escape(words)):
        slots.take(PAGE + 1)
    assert slots.bytes == len(kept.memory) == PAGE
    monkeypatch.undo()
    assert len(slots.take(PAGE + 1).memory) == 2 * PAGE  # when there is some again


def test_close_leaves_what_is_in_use_whole():
    slots = Slots()
    slot, other = slots.take(1000), slots.take(1000)
    slot.memory[:] = 5
    del other
    slots.close()
    slots.close()
    assert (slot.memory == 5).all()
    assert slots.file == -1
    slot.memory[:] = 6
    assert int(slot.memory.astype(int).sum()) == 6 * len(slot.memory)


def test_two_processes_see_the_same_bytes(slots):
    first, slot = slots.take(1), slots.take(1000)
    slot.memory[:4] = (1, 2, 3, 4)
    code = (
        "import sys, numpy as np; from sslpipe.stream.worker import MappedSlots; "
        f"memory = MappedSlots(int(sys.argv[1]))(({slot.start}, {len(slot.memory)})); "
        "print(memory[:4].tolist()); memory[1000] = 9"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(slots.file)],
        pass_fds=[slots.file],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[1, 2, 3, 4]\n"
    assert slot.memory[1000] == 9
    assert first.memory[1000] == 0


def test_the_address_of_a_mapping_is_that_of_its_arrays():
    memory = mmap.mmap(-1, PAGE)
    assert address_of(memory) == np.frombuffer(memory, np.uint8).ctypes.data
