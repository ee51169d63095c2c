"""Open tars: a file of this machine, or ranges of one that lies elsewhere."""

import os
from dataclasses import dataclass
from typing import Protocol

from ...errors import ShardError
from ..index import Index
from ..manifest import MISSING
from .download import Patience, read_range


class ShardTar(Protocol):
    """A tar that can be read for as long as somebody refers to it."""

    @property
    def index(self) -> Index:
        """Where its samples lie, and their labels and uids."""
        ...

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """Two blocks that lie one after the other; shorter where the tar ends."""
        ...


class LocalTar:
    """An open file, closed (and its lease ended) with the last reference."""

    def __init__(self, file: int, index: Index) -> None:
        self.file, self.index = file, index

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """Two calls: cutting one block in two would copy the content."""
        return os.pread(self.file, header, start), os.pread(self.file, content, start + header)

    def __del__(self) -> None:
        os.close(self.file)


@dataclass(frozen=True, slots=True)
class RangeReader:
    """A tar that is read in ranges, without a copy here; other processes connect by themselves."""

    url: str
    patience: Patience

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """One request for both.

        Raises:
            ShardError: the server cannot be reached, or knows no ranges.
        """
        block = read_all_of(self.url, start, start + header + content, self.patience)
        return block[:header], block[header:]


@dataclass(frozen=True, slots=True)
class DistantTar:
    """A tar that lies elsewhere, and its index."""

    reader: RangeReader
    index: Index

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """Two blocks that lie one after the other, in one request; ShardError."""
        return self.reader.read(start, header, content)


def read_all_of(url: str, start: int, end: int, patience: Patience) -> bytes:
    """Bytes [start, end) of a distant file, in as many answers as it takes.

    Raises:
        ShardError: it is missing, cannot be read, or the server knows no ranges.
    """
    blocks: list[bytes] = []
    while start < end:
        try:
            block = read_range(url, start, end, patience)
        except FileNotFoundError as error:
            raise ShardError(f"{url}: {MISSING}") from error
        if len(block) > end - start:
            raise ShardError(f"{url}: its server knows no byte ranges; set run.cache to a folder")
        blocks.append(block)
        start += len(block)
    return b"".join(blocks)
