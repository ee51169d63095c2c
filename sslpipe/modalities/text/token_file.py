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
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from ...errors import ShardError
from ...process import regular_file
from ...shards.side_files import other_format, written_whole

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
    """An open token file, closed with its last reference; `open_tokens` makes it.

    Raises:
        ShardError: the file is none of tokens, of another format, tokenizer or tar, or damaged.
    """

    def __init__(self, file: int, path: str | Path, of: TokenFileOf) -> None:
        self.number, self.path = file, Path(path)
        weakref.finalize(self, os.close, file)  # at the end of the process, too
        head = os.pread(file, HEADER.size, 0)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise ShardError(f"{path}: is no token file; {AGAIN}")
        _, version, width, documents, size, *digests, crc = HEADER.unpack(head)
        if version not in (VERSION, KEYLESS):
            raise ShardError(f"{path}: {other_format(version, VERSION, AGAIN)}")
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
        told = np.frombuffer(table, kind)
        if not self.has_keys:
            told = with_keys(told)
        self.documents = told.view("<i8").reshape(-1, 2)  # where it begins; ids, 2^32 x key bytes

    @property
    def counts(self) -> I64:
        """Ids of each document, (n,); UNREAD: it could not be read when they were counted."""
        return self.documents[:, 1] & UNREAD


def with_keys(told: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """A table of documents without keys as one of those whose keys have no bytes."""
    table = np.zeros(len(told), DOCUMENT)
    table["offset"], table["ids"] = told["offset"], told["ids"]
    return table


def crcs_of(key: bytes, data: bytes | memoryview, chunk: int) -> Iterator[bytes]:
    """The CRC-32 of the key and each chunk of ids, of so many bytes, as four bytes."""
    before = crc32(key)
    for at in range(0, max(1, len(data)), chunk):
        yield CRC.pack(crc32(data[at : at + chunk], before))


def open_tokens(path: str | Path, of: TokenFileOf) -> TokenFile:
    """A token file, its header and table checked.

    Raises:
        ShardError: it is missing, cut or damaged, or of another vocabulary or tar.
    """
    try:
        file = os.open(regular_file(path), os.O_RDONLY)
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened ({error.strerror}); {AGAIN}") from error
    return TokenFile(file, path, of)
