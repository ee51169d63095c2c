"""A document, or a piece of one, to ids of tokens, in a worker: no torch, no draws."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from .. import Raw
from .marks import SENTENCE, with_ends
from .vocabulary import Vocabulary, document_of

if TYPE_CHECKING:
    from ...device.buffers import Memory
    from ...stream.reader import Sample

I64 = npt.NDArray[np.int64]
IDS = np.dtype(np.int32)
OWN = -1  # a sample, where partners have a number


class RecentIds:
    """The ids of documents that were cut, for their other pieces, which stand in rows nearby.

    A document is encoded whole, so each of its pieces would cost as much as all of them. Safe in
    threads. Each process has its own, of `most` bytes.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size, self._lock = most, 0, threading.Lock()
        self._ids: OrderedDict[tuple[str, bytes], npt.NDArray[np.int32]] = OrderedDict()

    def get(self, key: tuple[str, bytes]) -> npt.NDArray[np.int32] | None:
        """The ids of a document by what encodes it and its bytes, if they are known still."""
        with self._lock:
            if key in self._ids:
                self._ids.move_to_end(key)
            return self._ids.get(key)

    def put(self, key: tuple[str, bytes], ids: npt.NDArray[np.int32]) -> None:
        """Keep the ids of a document; the longest unused ones go."""
        with self._lock:
            if key not in self._ids:
                self._ids[key] = ids
                self._size += ids.nbytes + len(key[1])
            while self._size > self._most:
                (_, data), old = self._ids.popitem(last=False)
                self._size -= old.nbytes + len(data)


RECENT = RecentIds(64 * 2**20)  # a window of 1,024 documents of 10 kB


class TokenDecode:
    """`decode(sample, (row, column, start, length))` -> (length,) int32 ids of that piece.

    Without a piece, the first `length` ids of the document. begin, end: whether the vocabulary's
    tokens of that name stand around each document. marked: ids have the bits of marks.py.
    partners: a number comes before the piece; it is OWN, or of 24 bits, which chooses one of the
    document's sentences, where its first `length` ids begin.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        length: int,
        begin: bool,
        end: bool,
        marked: bool = False,
        partners: bool = False,
    ) -> None:
        self.vocabulary, self.length, self.begin, self.end = vocabulary, length, begin, end
        self.marked, self.partners = marked, partners

    def extent(self, sample: Sample) -> tuple[int, ...]:
        """Steps of the document."""
        return (len(self.ids(sample)),)

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of the ids of each piece, (B,)."""
        if self.partners:
            own = self._room(sizes, instructions[:, 1:])
            return np.where(instructions[:, 0] == OWN, own, IDS.itemsize * self.length)
        return self._room(sizes, instructions)

    def _room(self, sizes: I64, pieces: I64) -> I64:
        if pieces.shape[1]:
            return IDS.itemsize * pieces[:, -1]
        if self.vocabulary.counted:  # tokens: normalisation may make more of a text
            return np.zeros_like(sizes)
        around = self.begin + self.end
        return IDS.itemsize * np.minimum(sizes + around, self.length)

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """The ids, and as extent how many the whole document has.

        Raises:
            SampleError: it is no text, or not as long as the index says.
        """
        ids = self.ids(sample)
        if self.partners:
            chosen, *instructions = instructions
            if chosen != OWN:
                start = sentence_of(ids, chosen)
                return Raw(ids[start : start + self.length], (len(ids),))
        start, length = self.piece(sample, len(ids), instructions)
        return Raw(ids[start : start + length], (len(ids),))

    def piece(self, sample: Sample, found: int, instructions: Sequence[int]) -> tuple[int, int]:
        """Where a piece of a document of `found` steps begins, and its steps at most.

        Raises:
            SampleError: the document is not as long as the index says.
        """
        if not instructions:
            return 0, self.length
        promised = sample.extent[self.vocabulary.counted] + self.begin + self.end
        if found != promised:  # the rows were planned from it
            raise miscounted(found, promised)
        _, _, start, length = instructions
        return start, length

    def ids(self, sample: Sample) -> npt.NDArray[np.int32]:
        """All of a document, for reading: its other pieces may have the same array."""
        key = self._kind, sample.data
        found = RECENT.get(key)
        if found is None:
            found = self.encoded(document_of(sample.data))
            dear = self.marked or self.vocabulary.fingerprint  # bytes cost next to nothing
            if len(found) > self.length and dear:
                RECENT.put(key, found)
        return found

    @cached_property
    def _kind(self) -> str:
        """What ids of the same bytes depend on."""
        return f"{self.marked} {self.begin} {self.end} {self.vocabulary.fingerprint}"

    def encoded(self, text: str) -> npt.NDArray[np.int32]:
        """The ids of a text, with those around it."""
        vocabulary = self.vocabulary
        encode = vocabulary.encode
        found = with_ends(vocabulary.encode_marked(text)) if self.marked else encode(text)
        begin, end = [vocabulary.begin] * self.begin, [vocabulary.end] * self.end
        return np.concatenate([begin, found, end], dtype=IDS, casting="unsafe")


def miscounted(found: int, promised: int) -> SampleError:
    """The error of a document that is not as long as the index says."""
    return SampleError(
        f"has {found} tokens, where the index promises {promised}; it was counted with another "
        "vocabulary or version: run `sslpipe tokenizer count` with --rebuild"
    )


def sentence_of(ids: npt.NDArray[np.int32], chosen: int) -> int:
    """Where the sentence begins that a number of 24 bits chooses, all alike likely."""
    starts = np.flatnonzero(ids & SENTENCE)
    return int(starts[chosen * len(starts) >> 24]) if len(starts) else 0
