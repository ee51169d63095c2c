"""Pieces of documents, read and checked in the token files that a process has open."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from ...device.buffers import Buffers, Memory
from ...errors import ShardError
from ...shards.read.store import open_files
from ...stream.lanes import first_of_runs
from .token_file import (
    AGAIN,
    CHUNK,
    CRC,
    UNREAD,
    TokenFile,
    TokenFileOf,
    crcs_of,
    open_tokens,
    token_path,
)

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
NOWAIT = os.RWF_NOWAIT if hasattr(os, "RWF_NOWAIT") else 0  # macOS waits
CHECKED = 64  # documents whose ids are read together
DOCUMENTS = 1 << 23  # of the files that a process keeps open: 128 MB


class ReadPieces(NamedTuple):
    """Pieces of n documents.

    keys: "" where a file has none. ids: their bytes. Of those that are `damaged` both are empty.
    """

    keys: list[str]
    ids: list[bytes]
    damaged: list[int]


class TokenBlocks(NamedTuple):
    """Heads and chunks of n documents as they are read, behind each other: (n,) each.

    first, last: the first chunk, and that behind the last one. The rest are places in memory, in
    bytes: where the head begins, its key, the ids behind it, and where these end.
    """

    first: I64
    last: I64
    begins: I64
    keys: I64
    ids: I64
    ends: I64

    def have_crcs(self, data: U8, width: int) -> Flags:
        """Whether key and ids have the CRC-32s that stand in the head, (n,)."""
        one = self.last - self.first == 1  # chunk, as most pieces have
        some = TokenBlocks(*(column[one] for column in self))
        stand_at = (some.begins + CRC.size * some.first)[:, None] + np.arange(CRC.size)
        found = [crc32(part) for part in parts(data, some.keys, some.ends, one[one])]
        right = np.empty(len(one), dtype=np.bool_)
        right[one] = data[stand_at].view("<u4")[:, 0] == np.array(found, dtype=np.uint32)
        for piece in np.flatnonzero(~one).tolist():
            first, last, begin, key, ids, end = (int(column[piece]) for column in self)
            crcs = b"".join(crcs_of(data[key:ids].tobytes(), data[ids:end].data, width * CHUNK))
            wanted = data[begin + CRC.size * first : begin + CRC.size * last].tobytes()
            right[piece] = crcs[: len(wanted)] == wanted
        return right


class DocumentTable(NamedTuple):
    """Documents of one file or several: the file of each, and what its table says, (n,) each."""

    files: Sequence[TokenFile]
    begins: I64
    ids: I64  # UNREAD: it is bad
    keys: I64
    fewest: I64  # chunks that it has at least

    @classmethod
    def of(cls, rows: Iterable[tuple[TokenFile, I64]]) -> "DocumentTable":
        """The documents in some rows of files."""
        files: list[TokenFile] = []
        tables, fewest = [], list[int]()
        for file, some in rows:
            files += [file] * len(some)
            fewest += [int(file.has_keys)] * len(some)
            tables.append(file.documents[some])
        begins, numbers = np.concatenate(tables).T
        return cls(files, begins, numbers & UNREAD, numbers >> 32, np.array(fewest))

    def without(self, places: Sequence[int]) -> "DocumentTable":
        """The same, of which some are empty."""
        if not places:
            return self
        ids, keys = self.ids.copy(), self.keys.copy()
        ids[places] = keys[places] = 0
        return self._replace(ids=ids, keys=keys)

    @property
    def width(self) -> int:
        """How many bytes an id takes in the file."""
        return self.files[0].width if self.files else 1

    def pieces(self, starts: I64, stops: I64, memory: Memory) -> ReadPieces:
        """Read and check ids [start, stop) of each document. memory: for what is read.

        Chunks that a piece does not touch are not read, and those of pieces beside each other that
        touch the same ones are read once.
        """
        chunks = np.maximum(self.fewest, -(-self.ids // CHUNK))
        first = np.minimum(starts // CHUNK, np.maximum(chunks - 1, 0))
        last = np.minimum(chunks, np.maximum(first + 1, -(-stops // CHUNK)))  # its key is in all
        numbers = np.array([file.number for file in self.files])
        once = first_of_runs(numbers, self.begins, first, last)
        blocks = self._at(once)._blocks(chunks[once], first[once], last[once])
        data = memory.empty((int(blocks.ends[-1:].sum()),), np.uint8)
        intact = self._at(once)._read(blocks, data)
        intact &= blocks.have_crcs(data, self.width)
        keys = [str(key, "utf-8") for key in parts(data, blocks.keys, blocks.ids, intact)]
        block = np.repeat(np.arange(len(once)), np.diff(once, append=len(first)))
        zero = (blocks.ids - self.width * CHUNK * blocks.first)[block]  # where id 0 would lie
        begins, ends = zero + self.width * starts, zero + self.width * stops
        return ReadPieces(
            [keys[number] for number in block.tolist()],
            [*map(bytes, parts(data, begins, ends, intact[block]))],
            np.flatnonzero(~intact[block]).tolist(),
        )

    def _at(self, places: I64) -> "DocumentTable":
        """Some of the documents."""
        files = [self.files[place] for place in places.tolist()]
        return DocumentTable(files, *(column[places] for column in self[1:]))

    def _blocks(self, chunks: I64, first: I64, last: I64) -> TokenBlocks:
        """What is read for chunks [first, last) of each document, of so many."""
        sizes = self.width * (np.minimum(self.ids, CHUNK * last) - CHUNK * first)
        crcs = CRC.size * chunks
        ends = np.cumsum(crcs + self.keys + sizes)
        ids = ends - sizes
        return TokenBlocks(first, last, ids - self.keys - crcs, ids - self.keys, ids, ends)

    def _read(self, blocks: TokenBlocks, data: U8) -> Flags:
        """Read blocks to their places; (n,) whether the files have all of them.

        Most pieces take one call: only where chunks are left out, the head is read by itself.
        """
        far = np.flatnonzero(blocks.first)
        behind = blocks.ids - blocks.begins + self.width * CHUNK * blocks.first
        files = [*self.files, *(self.files[piece] for piece in far.tolist())]
        columns = (
            (self.begins, (self.begins + behind)[far]),
            (blocks.begins, blocks.ids[far]),
            (np.where(blocks.first, blocks.ids, blocks.ends), blocks.ends[far]),
        )
        ranges = Ranges(
            [file.number for file in files], *(np.concatenate(c).tolist() for c in columns)
        )
        whole = np.ones(len(self.files), dtype=np.bool_)
        whole[np.concatenate([np.arange(len(whole)), far])[ranges.read(data)]] = False
        return whole


def parts(data: U8, begins: I64, ends: I64, taken: Flags) -> Iterator[memoryview]:
    """Parts of memory; of those that are not taken nothing."""
    view = memoryview(data)  # type: ignore[arg-type]
    last = np.where(taken, ends, begins).tolist()
    return (view[begin:end] for begin, end in zip(begins.tolist(), last, strict=True))


class Ranges(NamedTuple):
    """Ranges of files, and where in memory they are wanted, in bytes; plain numbers, as many each.

    Lists of tuples would have Python look for garbage all the time.
    """

    files: list[int]
    starts: list[int]
    places: list[int]
    ends: list[int]

    def read(self, data: U8) -> list[int]:
        """Read to memory; the numbers of those that are cut off.

        What the system has in memory is read at once, and the rest when it was asked to fetch all
        of that: on a disk a range costs 12 us then, and 58 where each waits for its own.
        """
        view = memoryview(data)  # type: ignore[arg-type]
        missed = self._missing(view)
        some = [(n, view[self.places[n] : self.ends[n]]) for n in missed]
        if hasattr(os, "posix_fadvise"):  # macOS has none
            for n, part in some:
                start, soon = self.starts[n], os.POSIX_FADV_WILLNEED
                os.posix_fadvise(self.files[n], start, len(part), soon)
        return [
            n for n, part in some if os.preadv(self.files[n], (part,), self.starts[n]) < len(part)
        ]

    def _missing(self, view: memoryview) -> list[int]:
        """Read what is in memory; the numbers of the ranges that are not, or not all."""
        missed, preadv = list[int](), os.preadv
        for number, (file, start, place, end) in enumerate(zip(*self, strict=True)):
            try:
                read = preadv(file, (view[place:end],), start, NOWAIT)
            except BlockingIOError:
                read = -1
            except OSError:  # this file system does not tell
                return [*missed, *range(number, len(self.files))]
            if read < end - place:
                missed.append(number)
        return missed


def damaged(file: TokenFile) -> str:
    """Why a document is bad whose ids do not have their CRC-32."""
    return f"its tokens in {file.path.name} do not have their CRC-32; {AGAIN}"


def token_faults(path: Path, of: TokenFileOf) -> Iterator[tuple[int | None, str]]:
    """What is wrong with a token file: the row, None: with all of it, and why.

    A document that could not be read has a fault of its own, which is not told again.
    """
    try:
        tokens = open_tokens(path, of)
    except ShardError as error:
        yield None, str(error)
        return
    readable = np.flatnonzero(tokens.counts != UNREAD)
    for some in np.split(readable, range(CHECKED, len(readable), CHECKED)):
        documents = DocumentTable.of([(tokens, some)])
        pieces = documents.pieces(np.zeros_like(some), documents.ids, Buffers())
        yield from ((int(some[piece]), damaged(tokens)) for piece in pieces.damaged)


class TokenFiles:
    """The token files that a process has open, by the path of their tar; safe in threads."""

    def __init__(self) -> None:
        self._documents, self._lock = 0, threading.Lock()
        self._open: OrderedDict[tuple[str, TokenFileOf], TokenFile] = OrderedDict()

    def __call__(self, tar: str, of: TokenFileOf) -> TokenFile:
        """The file beside a tar.

        Raises:
            ShardError: as `open_tokens`.
        """
        with self._lock:
            found = self._open.get((tar, of))
            if found is None:
                found = self._open[tar, of] = open_tokens(token_path(tar), of)
                self._documents += len(found.documents)
            self._open.move_to_end((tar, of))
            while len(self._open) > 1 and self._is_full():
                self._documents -= len(self._open.popitem(last=False)[1].documents)
            return found

    def _is_full(self) -> bool:
        return len(self._open) > open_files() or self._documents > DOCUMENTS


OPENED = TokenFiles()
