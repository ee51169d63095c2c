"""Tasks: what a worker reads is what was meant, whole, in part, and once more."""

import numpy as np
import pytest

from sslpipe.errors import ContractError
from sslpipe.stream import worker_tasks
from sslpipe.stream.jobs import are_alike, key_of, keys_of, table_of
from sslpipe.stream.reader import Sample
from sslpipe.stream.tasks import (
    COLUMNS,
    CRC,
    DECODE,
    DONE,
    EXTENT,
    EXTENT_WORD,
    FILE,
    KEY_BYTES,
    MEMBER_COLUMNS,
    PLACE,
    RESULT,
    ROOM,
    SENT,
    SHAPE_WORD,
    SHORT,
    START,
    UID,
    WORDS,
    Task,
    file_number,
    shard_of,
    unpacked,
)
from sslpipe.stream.worker import decoded, encoded
from sslpipe.stream.worker_tasks import Failed, Room, TaskReport, write_key


def make(n=6, parts=2, widths=(1, 3)):
    """A task of random numbers over three files."""
    rng = np.random.default_rng(n)
    table = rng.integers(-(2**62), 2**62, (n, COLUMNS + 2 * parts + sum(widths)))
    corpora, shards = np.array([0, 0, 1]), np.array([7, 9, 2])
    table[:, FILE] = np.repeat(file_number(corpora, shards), n // 3)
    table[:, PLACE] = rng.permutation(n)
    members = rng.integers(0, 2**40, (5, MEMBER_COLUMNS))
    members[:, 0] = (0, 1, 1, 4, 5)
    return Task(DECODE, (4096, 1 << 21), table, widths, members)


@pytest.mark.parametrize(("parts", "widths"), [(1, (0,)), (1, (4,)), (2, (1, 3)), (3, (0, 2, 0))])
def test_a_worker_reads_what_was_packed(parts, widths):
    task = make(parts=parts, widths=widths)
    read = unpacked(task.packed(17))
    assert (read.number, read.kind, read.slot) == (17, DECODE, task.slot)
    assert read.table == task.table.tolist()
    assert read.members == task.members.tolist()
    told = np.split(task.table[:, ROOM + 2 * parts :], np.cumsum(widths)[:-1], axis=1)
    for part, columns in zip(read.told, told, strict=True):
        assert [row[part] for row in read.table] == columns.tolist()


def test_a_task_names_its_files_by_numbers_that_tell_corpus_and_shard():
    task = make()
    assert {shard_of(file) for file in task.files} == {(0, 7), (0, 9), (1, 2)}
    assert {shard_of(file) for file in task.rest([5]).files} == {(1, 2)}
    last = (1 << 30) + 3, (1 << 32) - 1
    assert shard_of(int(file_number(*map(np.array, last)))) == last


def test_the_rest_of_a_task_keeps_places_and_members():
    task = make()
    rest = task.rest([1, 4])
    for column in (UID, EXTENT, START, CRC, PLACE):
        assert rest.table[:, column].tolist() == task.table[[1, 4], column].tolist()
    assert rest.members[:, 0].tolist() == [0, 0, 1]
    assert rest.members[:, 1:].tolist() == task.members[[1, 2, 3], 1:].tolist()
    assert rest.table[:, ROOM:].tolist() == task.table[[1, 4], ROOM:].tolist()
    none = task.rest([])
    assert len(none.table) == len(none.members) == 0


def test_reports_arrive_as_they_were():
    fault = Failed(3, "a.tar x: is bad", None)
    reports = [TaskReport(5), TaskReport(6, [fault], {2: "a long key"})]
    for report in reports:
        assert tuple(decoded(encoded(report))) == (
            report.number, [*report.faults] or (), dict(report.keys), None,
        )  # fmt: skip
    assert len(encoded(TaskReport(5))) == 8
    error = decoded(encoded(TaskReport(7, error=OSError(5, "gone")))).error
    assert (type(error), error.args) == (OSError, (5, "gone"))


@pytest.mark.parametrize(
    "key", ["a", "b" * KEY_BYTES, "b" * (KEY_BYTES + 1), "ß" * 55, "ß" * 56, "a\0b", "a\0"]
)
def test_a_key_stands_in_the_result_if_it_fits(key):
    memory = np.zeros(2 * RESULT.itemsize, np.uint8)
    fits = len(key.encode()) <= KEY_BYTES and "\0" not in key
    assert write_key(key, memoryview(memory), 0) == fits
    assert table_of(memory, 1, 2)["key_bytes"][0, 0] == (len(key.encode()) if fits else -1)
    assert key_of(table_of(memory, 1, 2)[0, 0]) == (key if fits else None)


def test_keys_and_kinds_of_many_results_are_read_at_once():
    memory = np.zeros(4 * 2 * RESULT.itemsize, np.uint8)
    results, words = table_of(memory, 4, 2), memory.view(np.int64).reshape(4, -1)
    keys = ["a", "b" * KEY_BYTES, "c" * (KEY_BYTES + 1), "ß"]
    for row, key in enumerate(keys):
        write_key(key, memoryview(memory), 2 * row * RESULT.itemsize)
    assert keys_of(words) == [keys[0], keys[1], "", keys[3]]
    assert keys_of(words[:0]) == []
    assert not are_alike(words)  # none is done
    results["status"] = DONE
    results["type"] = 1, 2  # of the two parts
    assert are_alike(words)
    results["shape"][0, 0] = 3, 2, 0, 0
    assert words[0, SHAPE_WORD : SHAPE_WORD + 2].tolist() == [3, 2]
    results["extent"][3, 1] = 7, 6, 5, 4
    assert words[3, WORDS + EXTENT_WORD :][:4].tolist() == [7, 6, 5, 4]
    assert are_alike(words)  # of one kind, whatever their sides
    results["axes"][2, 1] = 3
    assert not are_alike(words)
    results["axes"][2, 1], results["status"][2] = 0, SHORT
    assert not are_alike(words)


def test_a_room_takes_what_fits_where_it_lies():
    memory = np.zeros(256, np.uint8)
    room = Room(memory, 64, 24)
    array = room.empty((2, 3), np.int32)
    array[...] = 5
    assert np.shares_memory(array, memory)
    assert room.put(array)
    assert memory[64:88].view(np.int32).tolist() == [5] * 6
    assert not room.put(np.zeros(25, np.uint8))
    assert room.put(np.arange(12, dtype=np.int16).reshape(3, 4).T[:, ::-1])
    assert memory[64:88].view(np.int16).tolist() == [8, 4, 0, 9, 5, 1, 10, 6, 2, 11, 7, 3]
    assert not np.shares_memory(room.empty((25,), np.uint8), memory)
    assert not memory[:64].any()
    assert not memory[88:].any()


@pytest.mark.parametrize("kind", [*SENT, ">i4", "<c8", "<u2"])
def test_arrays_of_the_types_that_are_sent_are_taken_and_no_others(kind):
    """A type whose bytes lie the other way round has the same name, and other numbers."""
    array, sample = np.ones((2, 3), dtype=kind), Sample(1, "a", -1, b"")
    if kind in SENT:
        assert worker_tasks.decoded(lambda *_: (array, (2, 3)), sample, (), None)[0] is array
        return
    with pytest.raises(ContractError, match=rf"a: returned {np.dtype(kind)} of 2 axes"):
        worker_tasks.decoded(lambda *_: (array, (2, 3)), sample, (), None)
