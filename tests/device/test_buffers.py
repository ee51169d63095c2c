"""Memory comes back when nothing refers to it, and not before."""

import threading

import numpy as np
import pytest
import torch

from sslpipe.device.buffers import SLACK, Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_its_array_is_gone():
    buffers = Buffers()
    first = buffers.empty((30, 40, 3), np.uint8)
    place = address(first)
    assert address(buffers.empty((30, 40, 3), np.uint8)) != place
    del first
    again = buffers.empty((10, 85), np.float32)  # 3,400 of 3,600 bytes
    assert address(again) == place
    assert again.shape == (10, 85)
    assert again.dtype == np.float32


VIEWS = {
    "slice": lambda array: array[1:2],
    "slice of a slice": lambda array: array[1:][::2, 3:],
    "bytes": lambda array: array.view(np.uint8).reshape(-1)[7:9],
    "tensor": torch.from_numpy,
    "tensor's slice": lambda array: torch.from_numpy(array)[2].view(torch.int32),
    "tensor's array": lambda array: torch.from_numpy(array)[1].numpy().T,
    "memoryview": lambda array: memoryview(array)[1:],
    "dlpack": lambda array: np.from_dlpack(torch.from_numpy(array)[1:]),
}


@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS)
def test_whatever_looks_into_it_keeps_it(look):
    buffers = Buffers()
    array = buffers.empty((4, 50), np.float32)
    place, held = address(array), look(array)
    del array
    assert address(buffers.empty((4, 50), np.float32)) != place
    del held
    assert address(buffers.empty((4, 50), np.float32)) == place


def test_memory_that_is_too_small_or_far_too_large_is_not_taken():
    buffers = Buffers()
    assert buffers.empty((10_000,), np.uint8).size  # so that what comes back is not let go of
    place = address(buffers.empty((1200,), np.uint8))
    assert address(buffers.empty((1300,), np.uint8)) != place
    assert address(buffers.empty((int(1200 / SLACK) - 1,), np.uint8)) != place
    assert address(buffers.empty((int(1200 / SLACK) + 1,), np.uint8)) == place


def test_never_keeps_more_than_was_once_in_use():
    buffers, most = Buffers(), 0
    for size in range(40):
        held = [buffers.empty((1000 * 2**size % 65_537 + 1,), np.uint8) for _ in range(3)]
        most = max(most, sum(array.size for array in held))
        assert buffers._kept <= most * SLACK
        assert buffers._kept == buffers._used + sum(m.nbytes for m in buffers._free)
        del held  # by its count of references: nothing here waits for the collector


def test_no_elements_need_no_memory():
    assert Buffers().empty((2, 0, 3), np.float32).shape == (2, 0, 3)


def test_threads_never_share_memory():
    buffers, wrong = Buffers(), []

    def work(number):
        for i in range(300):
            held = [buffers.empty((8 + i % 5, 16), np.int64) for _ in range(3)]
            for array in held:
                array[...] = number
            wrong.extend(array for array in held if (array != number).any())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # six per thread: a list's three arrays are made while those of the turn before are still held
    assert buffers._kept <= 4 * 6 * 12 * 16 * 8
