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

from ...errors import ShardError
from ...shards.read.store import open_files
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
DOCUMENTS = 1 << 23  # of the files that a process keeps open: 128 MB


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
        far = ahead > 0
        expect(
            self.files,
            self.begins + np.where(far, heads + ahead, 0),
            np.where(far, sizes, heads + sizes),
        )
        crc_from, crc_to = CRC.size * first, CRC.size * last
        columns = (self.begins, crcs, heads, ahead, sizes, crc_from, crc_to, at, end)
        pread, unpack = os.pread, CRC.unpack_from
        for file, begin, key, head, before, size, crc, behind, start, stop in zip(
            self.files, *(column.tolist() for column in columns), strict=True
        ):
            if before:
                block = pread(file.number, head, begin)
                block += pread(file.number, size, begin + head + before)
            else:  # most pieces: one call
                block = pread(file.number, head + size, begin)
            if len(block) != head + size:
                intact = False
            elif behind - crc == CRC.size:  # most pieces
                intact = crc32(block[key:]) == unpack(block, crc)[0]  # a view takes longer
            else:
                found = b"".join(crcs_of(block[key:head], block[head:], width * CHUNK))
                intact = found[: behind - crc] == block[crc:behind]
            yield (block[key:head].decode(), block[start:stop]) if intact else None


def expect(files: Sequence[TokenFile], starts: I64, sizes: I64) -> None:
    """Have the system fetch ranges of files, all at once.

    What is in memory costs 0.4 us a range for nothing. What lies on a disk costs 12 us a range, and
    58 where each read waits for its own, of which the processor takes 6 and 20.
    """
    if hasattr(os, "posix_fadvise"):  # macOS has none
        advise, soon = os.posix_fadvise, os.POSIX_FADV_WILLNEED
        for file, start, size in zip(files, starts.tolist(), sizes.tolist(), strict=True):
            advise(file.number, start, size, soon)


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
    documents = DocumentTable.of([(tokens, readable)])
    pieces = documents.pieces(np.zeros_like(readable), documents.ids)
    yield from (
        (row, damaged(tokens))
        for row, piece in zip(readable.tolist(), pieces, strict=True)
        if piece is None
    )


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
