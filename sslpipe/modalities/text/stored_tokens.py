"""Documents whose ids lie beside the tars (token_file.py): pieces are read, nothing is encoded."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ...device.buffers import Buffers
from ...errors import ShardError
from ...stream.source import LENGTH, START
from ...stream.stored import StoredArrays, StoredPlaces, StoredRoom
from .captions import CaptionDecode
from .token_file import (
    SUFFIX,
    UNCOUNTED,
    UNREAD,
    TokenFileOf,
    open_tokens,
    token_path,
    width_of,
)
from .token_pieces import OPENED, DocumentTable, damaged, token_faults
from .tokens import IDS, TokenDecode, miscounted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from ...shards.manifest import Manifest, Shard
    from ...shards.verification import Problem

    I64 = npt.NDArray[np.int64]

log = logging.getLogger(__name__)
STORED = SUFFIX.removeprefix(".")  # in `counted` of a manifest, beside the counts
LOOKED_AT = 16  # files at most whose header is read when a set is opened


class StoredTokens:
    """Reads the ids that `decode` would make of documents, whose text is not read."""

    def __init__(self, decode: TokenDecode) -> None:
        vocabulary = decode.vocabulary
        self._kind = np.dtype(f"<u{width_of(vocabulary.size)}")
        self._decode, self._around = decode, decode.begin + decode.end
        self._begin, self._end = (
            token.to_bytes(self._kind.itemsize, "little") if is_there else b""
            for token, is_there in ((vocabulary.begin, decode.begin), (vocabulary.end, decode.end))
        )
        self._memory = Buffers()  # for blocks of files

    def __call__(self, places: StoredPlaces, room: StoredRoom) -> StoredArrays:
        """The ids of pieces, and as extents how many the whole documents have.

        Raises:
            ShardError: a token file is missing or damaged, or of another vocabulary or tar.
        """
        documents, begin = self._documents(places), len(self._begin) // self._kind.itemsize
        totals = documents.ids + self._around
        reasons = self._unreadable(places, documents, totals)
        bad = [*reasons]
        totals[bad] = 0
        starts, stops = self._steps(places, totals)
        documents = documents.without(bad)
        found = documents.pieces(
            np.maximum(starts - begin, 0), np.clip(stops - begin, 0, documents.ids), self._memory
        )
        for place in found.damaged:
            reasons.setdefault(place, damaged(documents.files[place]))
        sizes = stops - starts
        sizes[found.damaged] = totals[found.damaged] = 0
        flat, at = room(sizes, IDS)
        texts = self._with_ends(found.ids, starts, sizes, totals)
        first = int(at.min(initial=len(flat)))
        flat[first:] = np.frombuffer(laid(texts, at, sizes, len(flat), self._kind), self._kind)
        return StoredArrays(flat, at, sizes, totals, found.keys, reasons)

    def _with_ends(self, ids: Sequence[bytes], starts: I64, sizes: I64, totals: I64) -> list[bytes]:
        """Pieces with the tokens around their documents; nothing stands around nothing."""
        texts = [*ids]
        if self._begin:
            for place in np.flatnonzero((starts == 0) & (sizes > 0)).tolist():
                texts[place] = self._begin + texts[place]
        if self._end:
            for place in np.flatnonzero((starts + sizes == totals) & (sizes > 0)).tolist():
                texts[place] += self._end
        return texts

    def _documents(self, places: StoredPlaces) -> DocumentTable:
        """What token files say of documents."""
        of = self._decode.vocabulary.fingerprint
        ends = [*places.firsts.tolist(), len(places.rows)]
        return DocumentTable.of(
            (OPENED(tar.path, TokenFileOf(of, tar.sha256)), places.rows[slice(*pair)])
            for tar, pair in zip(places.tars, pairwise(ends), strict=True)
        )

    def _steps(self, places: StoredPlaces, totals: I64) -> tuple[I64, I64]:
        """Where pieces begin and end in documents of so many steps."""
        if places.told.shape[1]:
            starts = np.minimum(places.told[:, START], totals)
            return starts, np.minimum(starts + places.told[:, LENGTH], totals)
        return np.zeros_like(totals), np.minimum(self._decode.length, totals)

    def _unreadable(
        self, places: StoredPlaces, documents: DocumentTable, totals: I64
    ) -> dict[int, str]:
        """Why documents are bad by their tables: not counted, or not as rows were planned."""
        promised = totals
        if places.told.shape[1]:
            promised = places.extents[:, self._decode.vocabulary.counted] + self._around
        unread = documents.ids == UNREAD
        return {
            place: UNCOUNTED if unread[place] else str(miscounted(totals[place], promised[place]))
            for place in np.flatnonzero(unread | (totals != promised)).tolist()
        }


def laid(texts: Sequence[bytes], at: I64, sizes: I64, end: int, kind: np.dtype[Any]) -> bytes:
    """Ids in the order of their places, from the first of these to the end, 0 between them."""
    order = np.argsort(at, kind="stable")
    found = [texts[piece] for piece in order.tolist()]
    begins = np.append(at[order], end)
    gaps = begins[1:] - begins[:-1] - sizes[order]
    for number in np.flatnonzero(gaps).tolist():
        found[number] += bytes(kind.itemsize * int(gaps[number]))
    return b"".join(found)


def stored_tokens(
    decode: TokenDecode | CaptionDecode, sets: Sequence[Manifest]
) -> StoredTokens | None:
    """What reads the ids beside the tars, if all sets have them; None: documents are encoded.

    Raises:
        ShardError: a manifest promises them, and a file is missing, damaged or stale.
    """
    if not isinstance(decode, TokenDecode) or decode.marked or decode.partners:
        return None  # words, sentences and captions are seen in texts alone
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
