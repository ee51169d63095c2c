"""UL2's mixture of denoisers: each row is corrupted in one of seven ways.

Tay et al. 2022, arXiv:2205.05131, section 3.1, table 1.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...batch import TargetSpec, ViewSpec
from .corruption import SpanCorruption, row_keys, row_tokens, taken
from .pieces import Pieces
from .tasks import NOTHING, Asked, LaidRows
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
KINDS = "RXS"  # regular, extreme, sequential; their tokens are the first ones of the sentinels
SPANS = (  # kind, tokens of a span, share that is cut out
    ("R", 3.0, 0.15), ("R", 8.0, 0.15),
    ("X", 3.0, 0.5), ("X", 8.0, 0.5), ("X", 64.0, 0.15), ("X", 64.0, 0.5),
)  # fmt: skip
ENDING = 0.25  # of a row, which the sequential denoiser cuts off


@dataclass(frozen=True, kw_only=True)
class DenoiserMixture:
    """Seven denoisers, alike likely, chosen for each row by its key; see `SpanCorruption`.

    A row begins with a token of the denoiser's kind. Deviation: all rows are cut from the stream of
    documents before a denoiser is chosen, so what is read and written is as long as the longest of
    the seven, and padded; officially rows are cut for their denoiser.
    """

    def denoisers(self, length: int) -> list[tuple[str, SpanCorruption]]:
        """Kind and corruption of each, for rows of `length` tokens."""
        made = [(k, SpanCorruption(mean_span=mean, share=share)) for k, mean, share in SPANS]
        ending = SpanCorruption(mean_span=max(1.0, float(length)), share=ENDING)  # in one span
        return [*made, ("S", ending)]

    def widths(self, length: int) -> tuple[int, int]:
        """The longest that is read, with its kind, and written."""
        widths = [one.widths(length) for _, one in self.denoisers(length)]
        return 1 + max(read for read, _ in widths), max(written for _, written in widths)

    def specs(
        self, view: ViewSpec, vocabulary: Vocabulary, *, around: bool
    ) -> tuple[ViewSpec, TargetSpec]:
        """Rows and targets as long as the longest of any denoiser.

        Raises:
            ValueError: as SpanCorruption.
        """
        length, kinds = view.size("L"), len(KINDS)
        for _, one in self.denoisers(length):
            one.check(length, vocabulary.sentinels - kinds, around=around)
        read, written = self.widths(length)
        target = TargetSpec(view.group, 1, view.vocabulary, (written,))
        return replace(view, shape=(read,)), target

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """(B, 2, read + written), as SpanCorruption's, the kind in front."""
        keys, tokens = row_keys(pieces, seed), row_tokens(pieces)
        uniforms = keys.uniforms(stream, 2 * length)[0]
        denoisers, widths = self.denoisers(length), self.widths(length)
        chosen = keys.uniforms(f"{stream}/denoiser", 1)[0, :, 0] * len(denoisers)
        out = np.full((len(tokens), 2, sum(widths)), NOTHING)
        out[:, 0, 0] = 0  # of the document of the first token
        for number, (kind, one) in enumerate(denoisers):
            rows = np.flatnonzero(chosen.astype(np.int64) == number)
            out[rows, 1, 0] = vocabulary.size - vocabulary.sentinels + KINDS.index(kind)
            inner = widths[0] - 1, widths[1]
            out[rows, :, 1:] = one.table(tokens[rows], uniforms[rows], inner, vocabulary)
        return out

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """Tokens to be written, (B,)."""
        counts: I64 = (table[:, 0, self.widths(length)[0] :] != NOTHING).sum(1)
        return counts

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Take tokens and their documents from where the table says."""
        return taken(rows, table, self.widths(rows.tokens_BL.shape[1])[0], vocabulary)
