"""Ids of a shard's documents, `X.tar.tok` beside the tar, so that no run tokenises them again.

    96 bytes        magic, version, bytes of an id, documents, bytes of the file, hash of the
                    vocabulary, SHA-256 of the tar, CRC-32 of all this and of the table
    16 bytes x      documents (DOCUMENT), in the order of the tar
    ...             of each document: a CRC-32 for each CHUNK of its ids, at least one; its key; ids

A CRC-32 is of the key and the ids of its chunk, so a piece is read with its key by its own chunks
alone, each of which is checked; nobody looks into the tar. Version 1 had no keys: its tables have
12 bytes a document, a document without ids has no CRC-32, and keys are read in the tar's headers.
"""

import os
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from ...errors import ShardError
from ...shards.side_files import written_whole

SUFFIX = ".tok"
MAGIC, VERSION, KEYLESS = b"ssltoken", 2, 1
HEADER = struct.Struct("<8sHHIQ16s32sI20x")
CRC = struct.Struct("<I")
# `ids`: how many, UNREAD: it is bad; `key`: bytes of its key
DOCUMENT = np.dtype([("offset", "<u8"), ("ids", "<u4"), ("key", "<u4")])
KEYLESS_DOCUMENT = np.dtype([("offset", "<u8"), ("ids", "<u4")])
UNREAD = 2**32 - 1
CHUNK = 2048  # ids under one CRC-32: a row of most recipes
SMALL = 2**16  # ids that two bytes hold
OPEN = 256  # files that a process keeps open
AGAIN = "run `sslpipe tokenizer count` with --ids --rebuild"
UNCOUNTED = (
    f"could not be read when its tokens were counted; see `sslpipe verify`, and then {AGAIN}"
)

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


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


def file_bytes(tokens: I64, keys: I64, width: int) -> int:
    """Bytes of the token file of documents of so many tokens, and bytes of keys, each."""
    crcs = CRC.size * int(np.maximum(1, -(-tokens // CHUNK)).sum())
    table = HEADER.size + DOCUMENT.itemsize * len(tokens)
    return table + crcs + int(keys.sum()) + width * int(tokens.sum())


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

    def add(self, row: int, key: str, ids: I32) -> None:
        """Write the ids of a document; of one that is never added, none can be read."""
        assert not len(ids) or ids.max() <= np.iinfo(self._kind).max  # else it would wrap
        data, name = ids.astype(self._kind).tobytes(), key.encode()
        block = b"".join(crcs_of(name, data, CHUNK * self._kind.itemsize)) + name + data
        self._table[row] = self._end, len(ids), len(name)
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
        self.number, self.path = file, Path(path)
        weakref.finalize(self, os.close, file)  # at the end of the process, too
        head = os.pread(file, HEADER.size, 0)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise ShardError(f"{path}: is no token file; {AGAIN}")
        _, version, width, documents, size, *digests, crc = HEADER.unpack(head)
        if version not in (VERSION, KEYLESS):
            raise ShardError(f"{path}: is of version {version}, this is {VERSION}; {AGAIN}")
        for what, found, wanted in zip(("vocabulary", "tar"), digests, of.digests, strict=True):
            if found != wanted:
                raise ShardError(f"{path}: holds the tokens of another {what}; {AGAIN}")
        kind = DOCUMENT if version == VERSION else KEYLESS_DOCUMENT
        table = os.pread(file, kind.itemsize * documents, HEADER.size)
        plain = HEADER.pack(MAGIC, version, width, documents, size, *digests, 0)
        if os.fstat(file).st_size != size or crc32(table, crc32(plain)) != crc:
            raise ShardError(f"{path}: was cut or changed; {AGAIN}")
        self.has_keys = version == VERSION
        self.width = width  # bytes of an id
        self.documents = np.zeros((documents, 3), dtype=np.int64)  # offset, ids, bytes of the key
        for column, name in enumerate(kind.names or ()):
            self.documents[:, column] = np.frombuffer(table, kind)[name]


class Documents(NamedTuple):
    """Documents of one file or several: the file of each, and what its table says, (n,) each."""

    files: Sequence[TokenFile]
    begins: I64
    ids: I64  # UNREAD: it is bad
    keys: I64
    fewest: I64  # chunks that it has at least

    @classmethod
    def of(cls, rows: Iterable[tuple[TokenFile, I64]]) -> "Documents":
        """The documents in some rows of files."""
        files: list[TokenFile] = []
        tables, fewest = [], list[int]()
        for file, some in rows:
            files += [file] * len(some)
            fewest += [int(file.has_keys)] * len(some)
            tables.append(file.documents[some])
        begins, ids, keys = np.concatenate(tables).T
        return cls(files, begins, ids, keys, np.array(fewest))

    def without(self, places: Sequence[int]) -> "Documents":
        """The same, of which some are empty."""
        if not places:
            return self
        ids, keys = self.ids.copy(), self.keys.copy()
        ids[places] = keys[places] = 0
        return self._replace(ids=ids, keys=keys)

    def pieces(self, starts: I64, stops: I64) -> Iterator[tuple[str, bytes] | None]:
        """Key and ids [start, stop) of each document, "" where its file has no keys.

        Chunks that a piece does not touch are not read. None: it is damaged.
        """
        chunks = np.maximum(self.fewest, -(-self.ids // CHUNK))
        first = np.minimum(starts // CHUNK, np.maximum(chunks - 1, 0))
        last = np.minimum(chunks, np.maximum(first + 1, -(-stops // CHUNK)))  # its key is in all
        width = self.files[0].width if self.files else 1
        crcs, ahead = CRC.size * chunks, width * CHUNK * first
        heads, sizes = crcs + self.keys, width * np.minimum(self.ids, CHUNK * last) - ahead
        at, end = heads + width * starts - ahead, heads + width * stops - ahead
        columns = (self.begins, crcs, heads, ahead, sizes, CRC.size * first, last - first, at, end)
        pread, unpack, one = os.pread, CRC.unpack_from, CRC.size
        for file, begin, key, head, before, size, crc, count, start, stop in zip(
            self.files, *(column.tolist() for column in columns), strict=True
        ):
            if before:
                block = pread(file.number, head, begin)
                block += pread(file.number, size, begin + head + before)
            else:  # most pieces: one call
                block = pread(file.number, head + size, begin)
            if len(block) != head + size:
                yield None
            elif count == 1:  # most pieces
                intact = crc32(block[key:]) == unpack(block, crc)[0]  # a view takes longer
                yield (block[key:head].decode(), block[start:stop]) if intact else None
            else:
                found = b"".join(crcs_of(block[key:head], block[head:], width * CHUNK))
                intact = found[: one * count] == block[crc : crc + one * count]
                yield (block[key:head].decode(), block[start:stop]) if intact else None


def crcs_of(key: bytes, data: bytes | memoryview, chunk: int) -> Iterator[bytes]:
    """The CRC-32 of the key and each chunk of ids, of so many bytes, as four bytes."""
    before = crc32(key)
    for at in range(0, max(1, len(data)), chunk):
        yield CRC.pack(crc32(data[at : at + chunk], before))


def damaged(file: TokenFile) -> str:
    """Why a document is bad whose ids do not have their CRC-32."""
    return f"its tokens in {file.path.name} do not have their CRC-32; {AGAIN}"


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
    readable = np.flatnonzero(tokens.documents[:, 1] != UNREAD)
    documents = Documents.of([(tokens, readable)])
    pieces = documents.pieces(np.zeros_like(readable), documents.ids)
    yield from (
        (row, damaged(tokens))
        for row, piece in zip(readable.tolist(), pieces, strict=True)
        if piece is None
    )


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
