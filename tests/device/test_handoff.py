"""The hand-off, with streams that record what was asked of them; the real ones are marked gpu."""

import contextlib
import gc

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.device import arena
from sslpipe.device.handoff import SLOTS, CudaStreams, Direct, Staged, handoff
from sslpipe.device.ragged import Ragged
from sslpipe.device.slots import Slots

CPU = torch.device("cpu")


class Mark:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def synchronize(self):
        self.log.append(f"host waits for {self.name}")


class Streams:
    """A device whose streams are names, and whose memory is the host's."""

    def __init__(self):
        self.log, self.stream, self.marks = [], "main", 0

    @contextlib.contextmanager
    def side(self):
        self.stream, before = "side", self.stream
        yield
        self.stream = before

    def mark(self):
        self.marks += 1
        self.log.append(f"mark {self.marks} on {self.stream}")
        return Mark(self.log, self.marks)

    def wait(self, mark):
        self.log.append(f"{self.stream} waits for {mark.name}")

    def keep(self, tensor):
        self.log.append(f"keep {tensor.numel()} for {self.stream}")

    def staging(self, size):
        self.log.append(f"pin {size}")
        return torch.zeros(size, dtype=torch.uint8)

    def room(self, size):
        return torch.zeros(size, dtype=torch.uint8)


def batch(seed):
    rng = np.random.default_rng(seed)
    return [
        torch.from_numpy(rng.integers(0, 256, (5 + seed, 7, 3), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, 2, (2, 3, 4)).astype(bool)),
        torch.from_numpy(rng.integers(0, 99, (3,))),
        torch.from_numpy(rng.integers(0, 256, (4, 2, 3), dtype=np.uint8)),
    ]


def test_all_travels_in_one_buffer_and_arrives_unchanged():
    streams = Streams()
    tensors = batch(0)
    sent = Staged(streams).send(tensors)
    for there, here in zip(sent, tensors, strict=True):
        assert torch.equal(there, here)
        assert there.dtype == here.dtype
        assert there.untyped_storage().data_ptr() != here.untyped_storage().data_ptr()
    assert len({t.untyped_storage().data_ptr() for t in sent}) == 1
    assert sum(line.startswith("mark") for line in streams.log) == 1  # one copy


def test_a_slot_is_packed_again_only_when_its_copy_is_done():
    streams = Streams()
    staged = Staged(streams)
    for _ in range(2 * SLOTS + 1):
        staged.send(batch(0))
    waits = [line for line in streams.log if line.startswith("host")]
    assert waits == [f"host waits for {mark}" for mark in range(1, SLOTS + 2)]
    assert sum(line.startswith("pin") for line in streams.log) == SLOTS
    for mark in range(1, SLOTS + 2):  # and before the copy that it makes way for
        at = streams.log.index(f"host waits for {mark}")
        assert streams.log.index(f"mark {mark + SLOTS} on main") > at


def test_a_larger_batch_gets_a_larger_buffer_after_the_wait():
    streams = Streams()
    staged = Staged(streams)
    for _ in range(SLOTS):
        staged.send(batch(0))
    large = torch.arange(5000, dtype=torch.int32)
    assert torch.equal(staged.send([large])[0], large)
    assert streams.log[-3:] == [
        "host waits for 1", f"pin {arena.rung(20032)}", f"mark {SLOTS + 1} on main",
    ]  # fmt: skip


def test_the_consumers_stream_waits_for_the_batch_before_it_may_use_it():
    streams = Streams()
    staged = Staged(streams)
    with staged.making():
        made = staged.send([torch.arange(6)])
        mark = staged.mark()
    staged.receive(mark, made)
    assert streams.log[-3:] == ["mark 2 on side", "main waits for 2", "keep 6 for main"]
    assert not any(line.startswith("host") for line in streams.log)


def test_what_is_on_the_device_stays_there_and_is_kept_for_this_stream():
    streams = Streams()
    there = torch.empty(2, 3, device="meta")  # stands for a canvas that the device decoded
    with Staged(streams).making():
        sent = Staged(streams).send([torch.arange(3), there, torch.arange(2)])
    assert sent[1] is there
    assert sent[2].tolist() == [0, 1]
    assert "keep 6 for side" in streams.log


def test_on_a_cpu_nothing_is_done():
    direct, tensors = handoff(CPU), batch(1)
    assert isinstance(direct, Direct)
    assert all(a is b for a, b in zip(direct.send(tensors), tensors, strict=True))
    with direct.making():
        assert direct.mark() is None
    direct.receive(None, tensors)


def test_canvases_in_one_buffer_are_used_where_they_lie():
    pixels = Staged(Streams()).send([batch(s)[0] for s in range(4)])
    whole, starts = arena.together(pixels)
    assert whole.untyped_storage().data_ptr() == pixels[0].untyped_storage().data_ptr()
    apart, others = arena.together([pixel.clone() for pixel in pixels])
    assert apart.numel() == arena.rung(sum(pixel.numel() for pixel in pixels))
    for pixel, start, other in zip(pixels, starts, others, strict=True):
        assert torch.equal(whole[start : start + pixel.numel()], pixel.flatten())
        assert torch.equal(apart[other : other + pixel.numel()], pixel.flatten())


def test_the_pipeline_hands_every_batch_over(packed, recipe, monkeypatch):
    streams = Streams()
    monkeypatch.setattr("sslpipe.pipeline.handoff", lambda device: Staged(streams))
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"prefetch": 0})})
    with sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        staged = list(pipe)
    monkeypatch.undo()
    with sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        for a, b in zip(staged, pipe, strict=True):
            assert torch.equal(a.views["global"], b.views["global"])
            assert torch.equal(a.masks["random"], b.masks["random"])
            assert torch.equal(a.labels, b.labels)
    # of a batch: its canvases have crossed, its tables have, its views are made
    made = [line.split()[1] for line in streams.log if line.endswith("on side")][2::3]
    assert [line.split()[-1] for line in streams.log if line.startswith("main waits")] == made
    assert sum(line.startswith("keep") for line in streams.log) == 3 * len(staged)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (700, 800)])  # the last is not small
def test_bytes_are_copied_of_any_tensor(dtype, shape):
    tensor = (torch.rand(shape) * 9).to(dtype)
    for given in (tensor, tensor.mT if tensor.ndim == 2 else tensor):
        into = torch.zeros(given.nbytes, dtype=torch.uint8)
        arena.copy_bytes(into, given)
        assert torch.equal(into.view(dtype).view(given.shape), given)


def test_a_slot_is_kept_until_its_copy_is_done_at_the_latest_until_close():
    streams, slots = Streams(), Slots()
    staged = Staged(streams)
    starts = []
    for step in range(SLOTS + 2):
        slot = slots.take(100)
        starts.append(slot.start)
        flat = torch.from_numpy(slot.memory)
        arrays = Ragged(flat, np.array([0]), np.array([[100]]), torch.uint8)
        slot.memory[:100] = step
        (there,) = staged.send_arrays(arrays)
        del slot, arrays, flat
        assert torch.equal(there, torch.full((100,), step, dtype=torch.uint8))
    gc.collect()
    waits = [f"host waits for {n + 1}" for n in range(SLOTS + 2)]
    assert [line for line in streams.log if line in waits] == waits[:2]
    assert len(set(starts[: SLOTS + 1])) == SLOTS + 1
    assert starts[-1] == starts[0]
    staged.close()
    assert [line for line in streams.log if line in waits] == waits


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_consumer_sees_whole_batches():
    device = torch.device("cuda")
    staged = Staged(CudaStreams(device))
    for step in range(50):
        with staged.making():
            (sent,) = staged.send([torch.full((1 << 22,), step, dtype=torch.int32)])
            for _ in range(20):
                sent = sent + 0
            mark = staged.mark()
        staged.receive(mark, [sent])
        assert bool((sent == step).all())
