"""The work of a worker: read, check and decode the samples of tasks, each straight to its place.

It runs in worker processes, and in the caller's process where a recipe says `run.workers: 0`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..device.buffers import Memory
from ..errors import ContractError, SampleError
from .reader import MemberPlace, OpenTar, Sample, TarPlace, Wanted, read_sample
from .tasks import (
    ALONE,
    CRC,
    DONE,
    EXT,
    EXTENT,
    FAULT,
    FILE,
    FLAGS,
    HEADER,
    KEY_AT,
    KEY_BYTES,
    KEY_SIZE,
    LABEL,
    PLACE,
    READ,
    RESULT,
    RESULT_HEAD,
    ROOM,
    ROW,
    SENT,
    SHORT,
    SIZE,
    START,
    UID,
    Unpacked,
)

U8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
SIZE_OF_RESULT = RESULT.itemsize  # asked of NumPy once
ONLY_READ = DONE, *[0] * 12  # the rest of RESULT_HEAD, of a sample that is not decoded
TYPES = frozenset(map(np.dtype, SENT))  # the name of a type takes 5 us


class Decoder(Protocol):
    """Bytes to an array, as `modalities.Decode` says."""

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None
    ) -> Any: ...


class PartDecode(NamedTuple):
    """How one part of a recipe decodes a sample.

    first: as the device wants it; alone: whole, on the CPU; the same but where a device decodes.
    extensions: of the member that is the part's payload; None: it is the sample's.
    """

    first: Decoder
    alone: Decoder
    extensions: Collection[str] | None = None

    def of(self, sample: Sample) -> Sample:
        """A sample as this part sees it.

        Raises:
            SampleError: it has no member of the part's modality.
        """
        if self.extensions is None:
            return sample
        found = sorted(sample.members, key=lambda ext: "." in ext)  # .json before .name.json
        for ext in found:
            if ext.rpartition(".")[2] in self.extensions:
                return Sample(sample.uid, sample.key, sample.label, sample.members[ext])
        wanted = ", .".join(sorted(self.extensions))
        raise SampleError(f"has no member .{wanted}; put one beside it, or leave the sample out")


class ShardFile(NamedTuple):
    """An open shard, as a worker knows it."""

    name: str
    extensions: tuple[str, ...]
    tar: OpenTar
    place: TarPlace


class Failed(NamedTuple):
    """Why a sample of a task is bad. key: None where its header is not what was indexed."""

    row: int  # in the task
    reason: str
    key: str | None


class TaskReport(NamedTuple):
    """What a worker says when a task is done; almost always nothing but its number."""

    number: int
    faults: Sequence[Failed] = ()
    keys: Mapping[int, str] = MappingProxyType({})  # of samples whose key is too long for a result
    error: Exception | None = None  # no fault of a sample: the run cannot go on


class Room:
    """Offers the place in a slot that a task has for an array, as `numpy.empty` would."""

    def __init__(self, memory: U8, start: int, size: int) -> None:
        self._memory, self._start, self._size = memory, start, size
        self._given: Array | None = None  # what was offered

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """The place itself if it is large enough, else new memory."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size > self._size:
            return np.empty(shape, dtype)
        self._given = np.ndarray(shape, dtype, self._memory, self._start)
        return self._given

    def put(self, array: Array) -> bool:
        """Have an array there, copied if it is not there yet; False: it does not fit."""
        if array is self._given:
            return True
        if array.nbytes > self._size:
            return False
        there = self._given is not None and address(array) == address(self._given)
        if not there or not array.flags.c_contiguous:
            np.ndarray(array.shape, array.dtype, self._memory, self._start)[...] = array
        return True


def address(array: Array) -> int:
    """Where an array begins; half the time that `array.ctypes` takes."""
    place: int = array.__array_interface__["data"][0]
    return place


class Tasks:
    """Does tasks with the decoders of a recipe's parts.

    memory: finds the bytes of a slot. files: open shards by their numbers.
    """

    def __init__(
        self,
        parts: Sequence[PartDecode],
        memory: Callable[[tuple[int, int]], U8],
        files: dict[int, ShardFile],
    ) -> None:
        self._parts, self._memory, self._files = parts, memory, files

    def __call__(self, task: Unpacked) -> TaskReport:
        """Do all samples of a task; their results stand in the slot, the rest in the report."""
        faults: list[Failed] = []
        keys: dict[int, str] = {}
        memory = self._memory(task.slot)
        results = memoryview(memory)  # type: ignore[arg-type]
        try:
            for row in range(len(task.table)):
                self._sample(task, row, memory, results, faults, keys)
        except Exception as error:  # a shard is gone, or a decoder of the user's is wrong
            return TaskReport(task.number, error=error)
        return TaskReport(task.number, faults, keys)

    def _sample(
        self,
        task: Unpacked,
        row: int,
        memory: U8,
        results: memoryview,
        faults: list[Failed],
        keys: dict[int, str],
    ) -> None:
        """One sample; a SampleError becomes a fault. results: the memory again."""
        at = task.table[row][PLACE] * len(self._parts) * SIZE_OF_RESULT
        sample, key_bytes = None, 0
        try:
            sample = self._read(task, row)
            key_bytes = write_key(sample.key, results, at)
            if key_bytes < 0:
                keys[row] = sample.key
            for number, part in enumerate(self._parts):
                result = self._decode(task, row, number, part, sample, memory)
                RESULT_HEAD.pack_into(results, at + number * SIZE_OF_RESULT, key_bytes, *result)
        except SampleError as error:
            name = self._files[task.table[row][FILE]].name
            reason = f"{name} {sample.key}: {error}" if sample else str(error)
            faults.append(Failed(row, reason, sample.key if sample else None))
            for number in range(len(self._parts)):
                failed = key_bytes, FAULT, *[0] * 12
                RESULT_HEAD.pack_into(results, at + number * SIZE_OF_RESULT, *failed)

    def _read(self, task: Unpacked, row: int) -> Sample:
        columns = task.table[row]
        file = self._files[columns[FILE]]
        names = file.extensions
        members = [
            MemberPlace(
                names[columns[EXT]], columns[START], columns[HEADER], columns[SIZE], columns[CRC]
            )
        ]
        if task.members:
            others = (member[1:] for member in task.members if member[0] == row)
            members += [MemberPlace(names[ext], *numbers) for ext, *numbers in others]
        extent = tuple(columns[EXTENT : EXTENT + 4])
        wanted = Wanted(
            file.name, columns[ROW], columns[UID], columns[LABEL], columns[FLAGS], extent,  # type: ignore[arg-type]
            members, file.place,
        )  # fmt: skip
        return read_sample(file.tar, wanted)

    def _decode(
        self, task: Unpacked, row: int, number: int, part: PartDecode, sample: Sample, memory: U8
    ) -> tuple[int, ...]:
        """Decode one part of a sample to its place: the rest of RESULT_HEAD."""
        if task.kind == READ:
            return ONLY_READ
        columns, place = task.table[row], ROOM + 2 * number
        room = Room(memory, columns[place], columns[place + 1])
        decode = part.alone if task.kind == ALONE else part.first
        mine, told = part.of(sample), columns[task.told[number]]
        data, extent = decoded(decode, mine, told, room)
        status = DONE if room.put(data) else SHORT
        shape = *data.shape, *[0] * (4 - data.ndim)
        sides = *extent, *[0] * (4 - len(extent))
        return status, data.dtype.num, data.ndim, len(extent), data.nbytes, *shape, *sides


def decoded(
    decode: Decoder, sample: Sample, instructions: Sequence[int], memory: Memory | None
) -> tuple[Array, Sequence[int]]:
    """What a decoder returns: an array that can be sent, and the extent of the sample.

    Raises:
        SampleError: the sample is bad.
        ContractError: the decoder returns something else.
    """
    made = decode(sample, instructions, memory)
    data, extent = made if isinstance(made, tuple) and len(made) == 2 else (made, ())
    sent = isinstance(data, np.ndarray) and data.dtype in TYPES and data.ndim <= 4
    whole = isinstance(extent, tuple) and all(isinstance(n, int | np.integer) for n in extent)
    if not sent or not whole or not 0 < len(extent) <= 4:
        kind = type(data).__name__
        if isinstance(data, np.ndarray):
            kind = f"{data.dtype} of {data.ndim} axes and the extent {extent!r}"
        author = f"{type(decode).__module__}:{type(decode).__qualname__}"
        raise ContractError(
            f"{author}: {sample.key}: returned {kind}; "
            f"return Raw(array, extent): up to four axes of {', '.join(SENT)}, and one to four "
            "whole numbers, as the codec names them"
        )
    return data, extent


def write_key(key: str, results: memoryview, at: int) -> int:
    """Put the key of a sample into its first result; its length, or -1 where it is too long."""
    encoded = key.encode()
    if len(encoded) > KEY_BYTES:
        return -1
    KEY_SIZE.pack_into(results, at, len(encoded))
    start = at + KEY_AT
    results[start : start + len(encoded)] = encoded
    return len(encoded)
