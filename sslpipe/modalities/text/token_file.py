"""Ids of a shard's documents, `X.tar.tok` beside the tar, so that no run tokenises them again.

    96 bytes        magic, version, bytes of an id, documents, bytes of the file, hash of the
                    vocabulary, SHA-256 of the tar, CRC-32 of all this and of the table
    12 bytes x      documents (DOCUMENT), in the order of the tar
    ...             of each document: a CRC-32 for each CHUNK of its ids, then the ids

A piece of a document is read by its own chunks alone, each of which is checked.
"""

import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from ...errors import SampleError, ShardError
from ...shards.side_files import other_format, written_whole

SUFFIX = ".tok"
MAGIC, VERSION = b"ssltoken", 1
HEADER = struct.Struct("<8sHHIQ16s32sI20x")
CRC = struct.Struct("<I")
DOCUMENT = np.dtype([("offset", "<u8"), ("ids", "<u4")])  # `ids`: how many; UNREAD: it is bad
UNREAD = 2**32 - 1
CHUNK = 2048  # ids under one CRC-32: a row of most recipes
SMALL = 2**16  # ids that two bytes hold
OPEN = 256  # files that a process keeps open
AGAIN = "run `sslpipe tokenizer count` with --ids --rebuild"

I32 = npt.NDArray[np.int32]
Ids = npt.NDArray[np.unsignedinteger[Any]]


class TokenFileOf(NamedTuple):
    """What a token file must be of."""

    vocabulary: str  # its fingerprint
    tar_sha256: str

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """Both as they stand in a file."""
        return bytes.fromhex(self.vocabulary.removeprefix("b2:")), bytes.fromhex(self.tar_sha256)


def token_path(tar: str | Path) -> Path:
    """The token file that lies beside a tar."""
    return Path(f"{tar}{SUFFIX}")


def width_of(size: int) -> int:
    """Bytes of an id of a vocabulary of so many."""
    return 2 if size <= SMALL else 4


def file_bytes(tokens: npt.NDArray[np.int64], width: int) -> int:
    """Bytes of the token file of documents of so many tokens each."""
    crcs = 4 * int((-(-tokens // CHUNK)).sum())
    return HEADER.size + DOCUMENT.itemsize * len(tokens) + crcs + width * int(tokens.sum())


@contextmanager
def token_writer(
    path: Path, of: TokenFileOf, *, documents: int, width: int
) -> Iterator["TokenWriter"]:
    """Write the file of a tar of so many documents, whole or not at all.

    Raises:
        OSError: the disk is full or the folder closed.
    """
    with written_whole(path) as part, part.open("wb") as file:
        writer = TokenWriter(file, of, documents=documents, width=width)
        yield writer
        writer.finish()


class TokenWriter:
    """Takes the ids of documents in their order."""

    def __init__(self, file: BinaryIO, of: TokenFileOf, *, documents: int, width: int) -> None:
        self._file, self._of, self._kind = file, of, np.dtype(f"<u{width}")
        self._table = np.full(documents, UNREAD, dtype=DOCUMENT)
        self._end = HEADER.size + self._table.nbytes
        file.seek(self._end)

    def add(self, row: int, ids: I32) -> None:
        """Write the ids of a document; of one that is never added, none can be read."""
        assert not len(ids) or ids.max() <= np.iinfo(self._kind).max  # else it would wrap
        data = ids.astype(self._kind).tobytes()
        block = b"".join(crcs_of(data, self._kind.itemsize)) + data
        self._table[row] = self._end, len(ids)
        self._file.write(block)
        self._end += len(block)

    def finish(self) -> None:
        """Write what stands in front."""
        table, numbers = self._table.tobytes(), (self._kind.itemsize, len(self._table), self._end)
        plain = HEADER.pack(MAGIC, VERSION, *numbers, *self._of.digests, 0)
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, VERSION, *numbers, *self._of.digests,
                                     crc32(table, crc32(plain))) + table)  # fmt: skip


class TokenFile:
    """An open token file, closed with its last reference; `open_tokens` makes it."""

    def __init__(self, file: int, path: str | Path, of: TokenFileOf) -> None:
        self._file, self._path = file, path
        weakref.finalize(self, os.close, file)  # at the end of the process, too
        head = os.pread(file, HEADER.size, 0)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise ShardError(f"{path}: is no token file; {AGAIN}")
        _, version, width, documents, size, *digests, crc = HEADER.unpack(head)
        if version != VERSION:
            raise ShardError(f"{path}: {other_format(version, VERSION, AGAIN)}")
        for what, found, wanted in zip(("vocabulary", "tar"), digests, of.digests, strict=True):
            if found != wanted:
                raise ShardError(f"{path}: holds the tokens of another {what}; {AGAIN}")
        table = os.pread(file, DOCUMENT.itemsize * documents, HEADER.size)
        plain = HEADER.pack(MAGIC, version, width, documents, size, *digests, 0)
        if os.fstat(file).st_size != size or crc32(table, crc32(plain)) != crc:
            raise ShardError(f"{path}: was cut or changed; {AGAIN}")
        rows = np.frombuffer(table, DOCUMENT)
        self.counts, self._offsets = (np.ascontiguousarray(rows[x]) for x in ("ids", "offset"))
        self._kind, self._width = np.dtype(f"<u{width}"), width

    def count(self, row: int) -> int:
        """Tokens of a document.

        Raises:
            SampleError: it could not be read when they were counted.
        """
        found: int = self.counts.item(row)  # a record would take four times as long
        if found == UNREAD:
            raise SampleError(
                "could not be read when its tokens were counted; see `sslpipe verify`, and then "
                + AGAIN
            )
        return found

    def read(self, row: int, start: int, stop: int) -> Ids:
        """Ids [start, stop) of a document; chunks that they do not touch are not read.

        Raises:
            SampleError: they are damaged, or the document could not be read.
        """
        count, width = self.count(row), self._width
        first, last = start // CHUNK, -(-stop // CHUNK)
        begin: int = self._offsets.item(row)
        crcs_size = 4 * -(-count // CHUNK)
        ids_from, ids_to = first * CHUNK, min(count, last * CHUNK)
        size = width * (ids_to - ids_from)
        if first:
            crcs = os.pread(self._file, 4 * (last - first), begin + 4 * first)
            block, at = os.pread(self._file, size, begin + crcs_size + width * ids_from), 0
        else:  # most pieces: one call
            block, at = os.pread(self._file, crcs_size + size, begin), crcs_size
            crcs = block[: 4 * last]
        if len(block) != at + size or not self._intact(memoryview(block)[at:], crcs):
            name = Path(self._path).name
            raise SampleError(f"its tokens in {name} do not have their CRC-32; {AGAIN}")
        at += width * (start - ids_from)
        return np.frombuffer(block, self._kind, stop - start, at)

    def _intact(self, data: memoryview, crcs: bytes) -> bool:
        """Whether ids have the CRC-32 of each chunk."""
        if len(crcs) == CRC.size:  # most documents
            return bool(crc32(data) == CRC.unpack(crcs)[0])
        return b"".join(crcs_of(data, self._width)) == crcs


def crcs_of(data: bytes | memoryview, width: int) -> Iterator[bytes]:
    """The CRC-32 of each chunk of ids, as four bytes."""
    step = width * CHUNK
    for at in range(0, len(data), step):
        yield CRC.pack(crc32(data[at : at + step]))


def open_tokens(path: str | Path, of: TokenFileOf) -> TokenFile:
    """A token file, its header and table checked.

    Raises:
        ShardError: it is missing, cut or damaged, or of another vocabulary or tar.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened ({error.strerror}); {AGAIN}") from error
    return TokenFile(file, path, of)


def token_faults(path: Path, of: TokenFileOf) -> Iterator[tuple[int | None, str]]:
    """What is wrong with a token file: the row, None: with all of it, and why.

    A document that could not be read has a fault of its own, which is not told again.
    """
    try:
        tokens = open_tokens(path, of)
    except ShardError as error:
        yield None, str(error)
        return
    for row, count in enumerate(tokens.counts.tolist()):
        try:
            if count != UNREAD:
                tokens.read(row, 0, count)
        except SampleError as error:
            yield row, str(error)


class TokenFiles:
    """The token files that a process has open, by the path of their tar; safe in threads."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._open: OrderedDict[tuple[str, TokenFileOf], TokenFile] = OrderedDict()
        self._last: tuple[str, TokenFileOf, TokenFile] | None = None

    def __call__(self, tar: str, of: TokenFileOf) -> TokenFile:
        """The file beside a tar.

        Raises:
            ShardError: as `open_tokens`.
        """
        last = self._last  # pieces come shard by shard
        if last is not None and last[0] == tar and last[1] == of:
            return last[2]
        found = self._find(tar, of)
        self._last = tar, of, found
        return found

    def _find(self, tar: str, of: TokenFileOf) -> TokenFile:
        with self._lock:
            found = self._open.get((tar, of))
            if found is None:
                found = self._open[tar, of] = open_tokens(token_path(tar), of)
            self._open.move_to_end((tar, of))
            while len(self._open) > self._most:
                self._open.popitem(last=False)
            return found


OPENED = TokenFiles(OPEN)
