"""The work of a worker: read, check and decode the samples of tasks, each straight to its place.

It runs in worker processes, and in the caller's process where a recipe says `run.workers: 0`.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import SampleError
from .part_decode import PartDecode, decoded, measured_extent
from .reader import (
    MEMORY,
    MemberPlace,
    OpenTar,
    Sample,
    TarPlace,
    Wanted,
    kept_sample,
    read_sample,
)
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
    KEY_BYTES,
    LABEL,
    MEASURE,
    PLACE,
    READ,
    RESULT,
    RESULT_HEAD,
    RESULT_KEY,
    ROOM,
    ROW,
    SHORT,
    SIZE,
    START,
    UID,
    Unpacked,
)

U8 = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
SIZE_OF_RESULT = RESULT.itemsize  # asked of NumPy once
ZEROS = 0, 0, 0, 0  # behind shapes and extents
ONLY_READ, FAILED = (DONE, *[0] * 12), (FAULT, *[0] * 12)  # RESULT_HEAD of what is not decoded


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
    keys: Mapping[int, str] = MappingProxyType({})  # of samples whose key fits into no result
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
        results = memory.data
        try:
            for row, columns in enumerate(task.table):
                self._sample(task, row, columns, memory, results, faults, keys)
        except Exception as error:  # a shard is gone, or a decoder of the user's is wrong
            return TaskReport(task.number, error=error)
        return TaskReport(task.number, faults, keys)

    def _sample(
        self,
        task: Unpacked,
        row: int,
        columns: list[int],
        memory: U8,
        results: memoryview,
        faults: list[Failed],
        keys: dict[int, str],
    ) -> None:
        """One sample; a SampleError becomes a fault. results: the memory again."""
        at = columns[PLACE] * len(self._parts) * SIZE_OF_RESULT
        sample = None
        try:
            sample = self._read(task, row, columns)
            if not write_key(sample.key, results, at):
                keys[row] = sample.key
            for number, part in enumerate(self._parts):
                result = self._decode(task, columns, number, part, sample, memory)
                RESULT_HEAD.pack_into(results, at + number * SIZE_OF_RESULT, *result)
        except SampleError as error:
            name = self._files[columns[FILE]].name
            reason = f"{name} {sample.key}: {error}" if sample else str(error)
            faults.append(Failed(row, reason, sample.key if sample else None))
            for number in range(len(self._parts)):
                RESULT_HEAD.pack_into(results, at + number * SIZE_OF_RESULT, *FAILED)

    def _read(self, task: Unpacked, row: int, columns: list[int]) -> Sample:
        file = self._files[columns[FILE]]
        names, others = file.extensions, []
        if task.members:
            mine = (member[1:] for member in task.members if member[0] == row)
            others = [MemberPlace(names[ext], *numbers) for ext, *numbers in mine]
        extent = tuple(columns[EXTENT : EXTENT + 4])
        wanted = Wanted(
            file.name, columns[ROW], columns[UID], columns[LABEL], columns[FLAGS], extent,  # type: ignore[arg-type]
            names[columns[EXT]], columns[START], columns[HEADER], columns[SIZE], columns[CRC],
            others, file.place,
        )  # fmt: skip
        return (kept_sample if file.place == MEMORY else read_sample)(file.tar, wanted)

    def _decode(
        self,
        task: Unpacked,
        columns: list[int],
        number: int,
        part: PartDecode,
        sample: Sample,
        memory: U8,
    ) -> tuple[int, ...]:
        """Decode one part of a sample to its place: RESULT_HEAD."""
        if task.kind == READ:
            return ONLY_READ
        if task.kind == MEASURE:
            sides = measured_extent(part, sample)
            return DONE, 0, 0, len(sides), *[0] * 5, *sides, *ZEROS[len(sides) :]
        place = ROOM + 2 * number
        room = Room(memory, columns[place], columns[place + 1])
        decode = part.alone if task.kind == ALONE else part.first
        mine, told = part.of(sample), columns[task.told[number]]
        data, extent = decoded(decode, mine, told, room)
        status = DONE if room.put(data) else SHORT
        shape, axes = data.shape, data.ndim
        return (
            status, data.dtype.num, axes, len(extent), data.nbytes, *shape, *ZEROS[axes:],
            *extent, *ZEROS[len(extent) :],
        )  # fmt: skip


def write_key(key: str, results: memoryview, at: int) -> bool:
    """Put the key of a sample into its first result; False: it does not fit.

    Neither does one with a zero in it: that is what ends a key.
    """
    encoded = key.encode()
    fits = len(encoded) <= KEY_BYTES and 0 not in encoded
    size, text = (len(encoded), encoded) if fits else (-1, b"")
    RESULT_KEY.pack_into(results, at + RESULT_HEAD.size, size, text)
    return fits
