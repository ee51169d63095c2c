"""From the threads that make batches to the device, and from their stream to the consumer's.

On the host a batch is packed into a pinned buffer, one of a ring, and copied to the device at once;
the buffer is packed again only when its copy is done. Views are made on a side stream, beside
training. A batch comes with a mark; the consumer's stream waits for it, and the memory of the batch
is given out again only after what the consumer's stream had queued when the batch was let go.
The host waits for neither. On a CPU there is one kind of memory and one order: nothing is done.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle, islice
from typing import Protocol

import torch
from torch import Tensor

from .arena import rung, section_starts

SLOTS = 2  # one is packed while the other one's copy runs

Send = Callable[[Sequence[Tensor]], list[Tensor]]


class Mark(Protocol):
    """A place in a stream; `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Make the host wait until the stream is past it."""
        ...


class Streams(Protocol):
    """What a device offers; CUDA, or a test's record of what was asked."""

    def side(self) -> AbstractContextManager[object]:
        """Within it, work is queued on the side stream."""
        ...

    def mark(self) -> Mark:
        """After what is queued on the current stream so far."""
        ...

    def wait(self, mark: Mark) -> None:
        """Make the current stream, not the host, wait for a mark."""
        ...

    def keep(self, tensor: Tensor) -> None:
        """Do not give out its memory again before what the current stream has queued is done."""
        ...

    def staging(self, size: int) -> Tensor:
        """Bytes on the host that the device can copy from by itself."""
        ...

    def room(self, size: int) -> Tensor:
        """Bytes on the device."""
        ...


class Handoff(Protocol):
    """How batches reach the consumer."""

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same tensors on the device."""
        ...

    def making(self) -> AbstractContextManager[object]:
        """Within it, a batch is made."""
        ...

    def mark(self) -> Mark | None:
        """That what was made so far is done."""
        ...

    def receive(self, mark: Mark | None, tensors: Sequence[Tensor]) -> None:
        """The consumer may use these tensors on its current stream from now on."""
        ...


class Direct:
    """The CPU's: what is made is there."""

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Themselves."""
        return list(tensors)

    def making(self) -> AbstractContextManager[object]:
        """Nothing."""
        return nullcontext()

    def mark(self) -> None:
        """None is needed."""

    def receive(self, mark: Mark | None, tensors: Sequence[Tensor]) -> None:
        """Nothing to wait for."""


class Slot:
    """A staging buffer, and the mark after which it is free."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.copied: Mark | None = None


class Staged:
    """A CUDA device's: a ring of pinned buffers, and a side stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._ring = cycle([Slot() for _ in range(SLOTS)])

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Slices of one buffer on the device, filled by one copy; what is there already stays.

        The buffer takes few sizes, so a graph that is compiled for its size is compiled few times.
        """
        host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        starts = section_starts([tensor.nbytes for tensor in host])
        slot, size = next(self._ring), rung(starts[-1])
        self._prepare(slot, size)
        for tensor, start in zip(host, starts, strict=False):
            place(slot.buffer, tensor, start).copy_(tensor)
        flat = self._streams.room(size)
        flat[: starts[-1]].copy_(slot.buffer[: starts[-1]], non_blocking=True)
        slot.copied = self._streams.mark()
        sent = (place(flat, tensor, start) for tensor, start in zip(host, starts, strict=False))
        return [next(sent) if t.device.type == "cpu" else self._kept(t) for t in tensors]

    def _prepare(self, slot: Slot, size: int) -> None:
        """Wait for the slot's last copy, and make it large enough."""
        if slot.copied is not None:
            slot.copied.synchronize()
        if slot.buffer.nbytes < size:
            slot.buffer = self._streams.staging(size)

    def _kept(self, tensor: Tensor) -> Tensor:
        """A tensor that another stream of the device made."""
        self._streams.keep(tensor)
        return tensor

    def making(self) -> AbstractContextManager[object]:
        """On the side stream."""
        return self._streams.side()

    def mark(self) -> Mark:
        """After what was made."""
        return self._streams.mark()

    def receive(self, mark: Mark | None, tensors: Sequence[Tensor]) -> None:
        """The current stream waits for the mark."""
        assert mark is not None
        self._streams.wait(mark)
        for tensor in tensors:
            self._streams.keep(tensor)


def place(flat: Tensor, tensor: Tensor, start: int) -> Tensor:
    """Bytes of a flat buffer as a tensor of this one's shape and type."""
    return flat[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class CudaStreams:
    """Of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def side(self) -> AbstractContextManager[object]:
        """The stream of augmentation; of this thread alone."""
        return torch.cuda.stream(self._side)

    def mark(self) -> torch.cuda.Event:
        """An event."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, mark: Mark) -> None:
        """On the device."""
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(mark)

    def keep(self, tensor: Tensor) -> None:
        """Tell the caching allocator."""
        tensor.record_stream(torch.cuda.current_stream(self._device))

    def staging(self, size: int) -> Tensor:
        """Pinned."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def room(self, size: int) -> Tensor:
        """Of the caching allocator."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)


def handoff(device: torch.device) -> Handoff:
    """The one that suits a device."""
    return Staged(CudaStreams(device)) if device.type == "cuda" else Direct()


def send_groups(send: Send, *groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Send several lists of tensors in one copy; the lists come back as they were."""
    sent = iter(send([tensor for group in groups for tensor in group]))
    return [list(islice(sent, len(group))) for group in groups]
