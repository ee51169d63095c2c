"""From the threads that make batches to the device, and from their stream to the consumer's.

On the host a batch is packed into a pinned buffer, one of a ring, and copied to the device at once;
the buffer is packed again only when its copy is done. Views are made on a side stream, beside
training. A batch comes with a mark; the consumer's stream waits for it, and the memory of the batch
is given out again only after what the consumer's stream had queued when the batch was let go.
The host waits for neither. On a CPU there is one kind of memory and one order: nothing is done.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle, islice
from typing import Protocol

import torch
from torch import Tensor

from ..errors import SslpipeError
from .arena import copy_bytes, rung, section_starts
from .ragged import Ragged

SLOTS = 2  # one is packed while the other one's copy runs

Send = Callable[[Sequence[Tensor]], list[Tensor]]


class Mark(Protocol):
    """A place in a device's queue of work; `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Make the host wait until the stream is past it."""
        ...


class Streams(Protocol):
    """What the hand-off needs of a device; `CudaStreams` has it, and so has a test's record."""

    def side(self) -> AbstractContextManager[object]:
        """Return a context in which work is queued on the side stream."""
        ...

    def mark(self) -> Mark:
        """Mark the place after all that is queued on the current stream so far."""
        ...

    def wait(self, mark: Mark) -> None:
        """Make the current stream, not the host, wait for a mark."""
        ...

    def keep(self, tensor: Tensor) -> None:
        """Keep its memory from others until what the current stream has queued is done."""
        ...

    def staging(self, size: int) -> Tensor:
        """Allocate `size` bytes on the host that the device can copy from by itself."""
        ...

    def room(self, size: int) -> Tensor:
        """Allocate `size` bytes on the device; uint8."""
        ...


class Handoff(Protocol):
    """The way of a batch from the thread that makes it to the consumer."""

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the same tensors on the device, in the same order."""
        ...

    def send_arrays(self, arrays: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return arrays on the device; a `Ragged` crosses where it lies, in one copy."""
        ...

    def making(self) -> AbstractContextManager[object]:
        """Return a context in which the views of a batch are made."""
        ...

    def mark(self) -> Mark | None:
        """Mark the place after what was made so far; None where nothing has to be waited for."""
        ...

    def receive(self, mark: Mark | None, tensors: Sequence[Tensor]) -> None:
        """Let the consumer use these tensors on its current stream from now on."""
        ...

    def close(self) -> None:
        """Wait until nothing is copied from host memory any more, which may go after that."""
        ...


class Direct:
    """The hand-off of a CPU: a tensor can be used where and as soon as it is made."""

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors themselves: there is no other memory to send them to."""
        return list(tensors)

    def send_arrays(self, arrays: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the arrays themselves."""
        return arrays

    def making(self) -> AbstractContextManager[object]:
        """Return a context that does nothing: a CPU has one queue of work."""
        return nullcontext()

    def mark(self) -> None:
        """Return None: what was made is done."""

    def receive(self, mark: Mark | None, tensors: Sequence[Tensor]) -> None:
        """Do nothing: there is no mark to wait for."""

    def close(self) -> None:
        """Do nothing: nothing is copied."""


class PinnedSlot:
    """One pinned buffer of the ring, and the mark after which it may be packed again."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.copied: Mark | None = None


class Staged:
    """The hand-off of a CUDA device: a ring of pinned buffers, and a side stream."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._ring = cycle([PinnedSlot() for _ in range(SLOTS)])
        self._crossing: deque[tuple[Mark, Tensor]] = deque()  # buffers whose copies may still run

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Slices of one buffer on the device, filled by one copy; what is there already stays.

        The buffer takes few sizes, so a graph that is compiled for its size is compiled few times.
        """
        host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        starts = section_starts([tensor.nbytes for tensor in host])
        slot, size = next(self._ring), rung(starts[-1])
        self._prepare(slot, size)
        for tensor, start in zip(host, starts, strict=False):
            copy_bytes(slot.buffer[start : start + tensor.nbytes], tensor)
        flat = self._streams.room(size)
        flat[: starts[-1]].copy_(slot.buffer[: starts[-1]], non_blocking=True)
        slot.copied = self._streams.mark()
        sent = (place(flat, tensor, start) for tensor, start in zip(host, starts, strict=False))
        return [next(sent) if t.device.type == "cpu" else self._kept(t) for t in tensors]

    def send_arrays(self, arrays: Sequence[Tensor]) -> Sequence[Tensor]:
        """One copy of the buffer in which the arrays lie, which is pinned if it is the arena's.

        That memory is kept until its copy is done: it may be given out again after that.
        """
        if not isinstance(arrays, Ragged) or arrays.flat_N.device.type != "cpu":
            return self.send(arrays)
        used = arrays.used
        flat_N = self._streams.room(rung(used))
        flat_N[:used].copy_(arrays.flat_N[:used], non_blocking=True)
        self._crossing.append((self._streams.mark(), arrays.flat_N))
        if len(self._crossing) > SLOTS:
            self._crossing.popleft()[0].synchronize()
        return arrays.on(flat_N)

    def _prepare(self, slot: PinnedSlot, size: int) -> None:
        """Wait for the slot's last copy, and make it large enough."""
        if slot.copied is not None:
            slot.copied.synchronize()
        if slot.buffer.nbytes < size:
            slot.buffer = self._streams.staging(size)

    def _kept(self, tensor: Tensor) -> Tensor:
        """Return a tensor that another stream made, safe from being given out too early."""
        self._streams.keep(tensor)
        return tensor

    def making(self) -> AbstractContextManager[object]:
        """Return a context whose work is queued on the side stream."""
        return self._streams.side()

    def mark(self) -> Mark:
        """Mark the place after what was made on the current stream."""
        return self._streams.mark()

    def receive(self, mark: Mark | None, tensors: Sequence[Tensor]) -> None:
        """Make the current stream wait for the mark, and keep the memory of the tensors."""
        assert mark is not None
        self._streams.wait(mark)
        for tensor in tensors:
            self._streams.keep(tensor)

    def close(self) -> None:
        """Wait for the copies out of the arena, and let its memory go."""
        while self._crossing:
            self._crossing.popleft()[0].synchronize()


def place(flat: Tensor, tensor: Tensor, start: int) -> Tensor:
    """View the bytes from `start` of a flat uint8 buffer in the shape and type of `tensor`."""
    return flat[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class CudaStreams:
    """The streams of one CUDA device: the consumer's, and one beside it for augmentation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def side(self) -> AbstractContextManager[object]:
        """Queue the work of this thread, and of no other, on the stream of augmentation."""
        return torch.cuda.stream(self._side)

    def mark(self) -> torch.cuda.Event:
        """Record an event on the current stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self, mark: Mark) -> None:
        """Make the current stream wait on the device; the host goes on."""
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream(self._device).wait_event(mark)

    def keep(self, tensor: Tensor) -> None:
        """Tell the caching allocator that the current stream uses this tensor."""
        tensor.record_stream(torch.cuda.current_stream(self._device))

    def staging(self, size: int) -> Tensor:
        """Allocate pinned memory, from which the device copies without the host."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def room(self, size: int) -> Tensor:
        """Take memory of torch's caching allocator."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)


def handoff(device: torch.device) -> Handoff:
    """Choose the hand-off that suits a device: staged for CUDA, direct for the rest."""
    return Staged(CudaStreams(device)) if device.type == "cuda" else Direct()


def send_groups(send: Send, *groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Send several lists of tensors in one copy; the lists come back as they were."""
    sent = iter(send([tensor for group in groups for tensor in group]))
    return [list(islice(sent, len(group))) for group in groups]


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_device(name: str | torch.device | None) -> torch.device:
    """Find a device by the name that a user gives it; None: CUDA if there is one, else the CPU.

    Raises:
        SslpipeError: it is no CPU or CUDA device, or this machine does not have it.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's own text lists dozens of kinds
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise SslpipeError(f"device {str(name)!r}: is no device of ours; choose cpu or cuda")
    # torch keeps eight bits of a number: of cuda:256 it makes cuda:0
    wrapped = str(device) != str(name) or (device.index or 0) < 0
    if device.type == "cuda" and (wrapped or (device.index or 0) >= count):
        have = f"has {count} of them" if count else "has none, or this torch is built without CUDA"
        other = f"cuda:0 to cuda:{count - 1}" if count else "cpu"
        raise SslpipeError(f"device {str(name)!r}: this machine {have}; choose {other}")
    return device


def pin(address: int, size: int) -> None:
    """Register host memory, so that a CUDA device copies from it by itself.

    Raises:
        SslpipeError: the system does not let this process pin so much.
    """
    code = torch.cuda.cudart().cudaHostRegister(address, size, 0)  # type: ignore[no-untyped-call]
    if int(code) != 0:
        raise SslpipeError(
            f"arena: {size:,} bytes of host memory cannot be pinned (CUDA error {int(code)}); "
            "raise `ulimit -l`, or make batches or run.prefetch smaller"
        )


def unpin(address: int) -> None:
    """Make memory that `pin` registered, by its address, pageable again."""
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
