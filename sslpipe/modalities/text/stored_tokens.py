"""Documents whose ids lie beside the tars (token_file.py): pieces are read, nothing is encoded."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from ...errors import SampleError, ShardError
from ...stream.source import LENGTH, START
from ...stream.stored import StoredArrays, StoredPlaces
from .token_file import (
    OPENED,
    SUFFIX,
    Ids,
    TokenFile,
    TokenFileOf,
    open_tokens,
    token_faults,
    token_path,
    width_of,
)
from .tokens import IDS, TokenDecode, miscounted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...device.buffers import Memory
    from ...shards.manifest import Manifest, Shard
    from ...shards.verification import Problem

log = logging.getLogger(__name__)
STORED = SUFFIX.removeprefix(".")  # in `counted` of a manifest, beside the counts
ANY, TAR = -1, itemgetter(0)
LOOKED_AT = 16  # files at most whose header is read when a set is opened


@dataclass(slots=True)
class ReadPieces:
    """What was read so far: of each piece its key, steps and those of its document; all the ids."""

    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    ids: list[Ids] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)

    def add(self, key: str, size: int, total: int) -> None:
        """One piece more."""
        self.keys.append(key)
        self.sizes.append(size)
        self.totals.append(total)


class StoredTokens:
    """Reads the ids that `decode` would make of documents, whose text is not read."""

    def __init__(self, decode: TokenDecode) -> None:
        vocabulary = decode.vocabulary
        kind = np.dtype(f"<u{width_of(vocabulary.size)}")
        self._decode = decode
        self._begin = [np.array([vocabulary.begin], kind)] if decode.begin else []
        self._end = [np.array([vocabulary.end], kind)] if decode.end else []

    def __call__(self, places: StoredPlaces, memory: Memory) -> StoredArrays:
        """The ids of pieces, and as extents how many the whole documents have.

        Raises:
            ShardError: a token file is missing or damaged, or of another vocabulary or tar.
        """
        read, fingerprint = ReadPieces(), self._decode.vocabulary.fingerprint
        for tar, pieces in groupby(zip(places.tars, *self._wanted(places), strict=True), TAR):
            tokens = OPENED(tar.path, TokenFileOf(fingerprint, tar.sha256))
            for _, *piece in pieces:
                try:
                    self._read(tokens, read, *piece)
                except SampleError as error:
                    read.reasons[len(read.keys)] = str(error)
                    read.add("", 0, 0)
        sizes = np.array(read.sizes, dtype=np.int64)
        flat = memory.empty((int(sizes.sum()),), IDS)
        np.concatenate(read.ids or [flat], out=flat, casting="unsafe")
        return StoredArrays(flat, sizes, np.array(read.totals), read.keys, read.reasons)

    def _wanted(self, places: StoredPlaces) -> tuple[list[int], ...]:
        """Of each piece its row, where it begins, its steps, and those of its document, or ANY."""
        rows, told = places.rows.tolist(), places.told
        if not told.shape[1]:
            return rows, [0] * len(rows), [self._decode.length] * len(rows), [ANY] * len(rows)
        totals = places.extents[:, self._decode.vocabulary.counted]
        totals = totals + len(self._begin) + len(self._end)
        return rows, told[:, START].tolist(), told[:, LENGTH].tolist(), totals.tolist()

    def _read(
        self, tokens: TokenFile, read: ReadPieces, row: int, start: int, length: int, promised: int
    ) -> None:
        """Read one piece.

        Raises:
            SampleError: its ids are damaged, or not as many as the index says.
        """
        begin, end = self._begin, self._end
        count = tokens.count(row)
        total, first = count + len(begin) + len(end), len(begin)
        if total != promised != ANY:
            raise miscounted(total, promised)
        stop = min(start + length, total)
        key, ids = tokens.piece(row, max(0, start - first), min(count, stop - first))
        read.ids += begin[start:]  # at 0 alone
        read.ids.append(ids)
        read.ids += end[total - stop :]
        read.add(key, stop - start, total)


def stored_tokens(decode: TokenDecode, sets: Sequence[Manifest]) -> StoredTokens | None:
    """What reads the ids beside the tars, if all sets have them; None: documents are encoded.

    Raises:
        ShardError: a manifest promises them, and a file is missing, damaged or stale.
    """
    if decode.marked or decode.partners:  # words and sentences are seen in texts alone
        return None
    wanted = decode.vocabulary.fingerprint
    found = [manifest.counted.get(STORED) for manifest in sets]
    if not wanted or not any(found):
        return None
    for manifest, told in zip(sets, found, strict=True):
        if told != wanted or isinstance(manifest.root, str):
            what = "lie elsewhere" if told == wanted else f"are those of {told}, not of {wanted}"
            log.warning(
                "%s: the ids beside its tars %s, so documents are tokenised in every epoch; run "
                "`sslpipe tokenizer count SHARDS --tokenizer FILE --ids` on a copy here",
                manifest.root, what,
            )  # fmt: skip
            return None
        check_few(manifest, wanted)
    return StoredTokens(decode)


def check_few(manifest: Manifest, vocabulary: str) -> None:
    """Look at the token files of a few shards; the rest are looked at when they are opened.

    Raises:
        ShardError: one is missing, damaged or stale.
    """
    count = len(manifest.shards)
    for number in sorted({i * (count - 1) // (LOOKED_AT - 1) for i in range(LOOKED_AT)}):
        shard = manifest.shards[number]
        open_tokens(token_path(manifest.folder / shard.file), TokenFileOf(vocabulary, shard.sha256))


def stored_faults(manifest: Manifest, shard: Shard) -> Iterator[Problem]:
    """What is wrong with the files of tokens and sentences of a shard, if its set has them."""
    from ...shards.verification import Problem  # workers do without it
    from .sentence_file import COUNTED, SentenceFile, sentence_path

    sentences = manifest.counted.get(COUNTED)
    if sentences is not None:
        try:
            SentenceFile(
                sentence_path(manifest.folder / shard.file), TokenFileOf(sentences, shard.sha256)
            )
        except ShardError as error:
            yield Problem(shard.file, "", str(error), None)
    vocabulary = manifest.counted.get(STORED)
    if vocabulary is None:
        return
    of = TokenFileOf(vocabulary, shard.sha256)
    for row, what in token_faults(token_path(manifest.folder / shard.file), of):
        key = "" if row is None else f"sample {row}"
        yield Problem(shard.file, key, what, row)
