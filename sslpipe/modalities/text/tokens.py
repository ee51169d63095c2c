"""A document, or a piece of one, to ids of tokens, in a worker: no torch, no draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from .. import Raw
from .vocabulary import VOCABULARIES, document_of

if TYPE_CHECKING:
    from ...device.buffers import Memory
    from ...stream.reader import Sample

I64 = npt.NDArray[np.int64]
IDS = np.dtype(np.int32)


class TokenDecode:
    """`decode(sample, (row, column, start, length))` -> (length,) int32 ids of that piece.

    Without a piece, the first `length` ids of the document. begin, end: whether the vocabulary's
    tokens of that name stand around each document.
    """

    def __init__(self, vocabulary: str, *, length: int, begin: bool, end: bool) -> None:
        self.vocabulary, self.length, self.begin, self.end = vocabulary, length, begin, end

    def extent(self, sample: Sample) -> tuple[int, ...]:
        """Steps of the document."""
        return (len(self.ids(sample)),)

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of the ids of each piece, (B,)."""
        if instructions.shape[1]:
            return IDS.itemsize * instructions[:, -1]
        around = self.begin + self.end  # no token is less than a byte of what is stored
        return IDS.itemsize * np.minimum(sizes + around, self.length)

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """The ids, and as extent how many the whole document has.

        Raises:
            SampleError: it is no text, or not as long as the index says.
        """
        ids = self.ids(sample)
        _, _, start, length = instructions or (0, 0, 0, min(self.length, len(ids)))
        piece = ids[start : start + length]
        if len(piece) != length:
            raise SampleError(
                f"has {len(ids)} tokens, where the index promises {start + length} or more; it was "
                "counted with another vocabulary: run `sslpipe index` again"
            )
        return Raw(piece, (len(ids),))

    def ids(self, sample: Sample) -> npt.NDArray[np.int32]:
        """All of a document."""
        vocabulary = VOCABULARIES[self.vocabulary]
        begin = [vocabulary.begin] * self.begin
        end = [vocabulary.end] * self.end
        ids = vocabulary.encode(document_of(sample.data))
        return np.concatenate([begin, ids, end], dtype=IDS, casting="unsafe")
