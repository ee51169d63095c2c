"""What documents cost in nats and bits: sums over rows and documents, and a guess that is blind.

Letters: N tokens, K ids, B rows, D documents.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import IGNORED
from ..methods.parts.heads import at_least_fp32


def row_nats(logits_NK: Tensor, targets_N: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The sum of -ln p of the tokens that each row is asked for, and how many these are.

    logits of any float type; targets int64, IGNORED: not asked for; N is a multiple of `rows`.
    Gives (B,) float64 and (B,) int64.
    """
    nats_N = F.cross_entropy(
        at_least_fp32(logits_NK), targets_N, ignore_index=IGNORED, reduction="none"
    )
    asked_N = targets_N != IGNORED
    return nats_N.double().view(rows, -1).sum(1), asked_N.view(rows, -1).sum(1)


def unigram_entropy(counts_K: Tensor) -> float:
    """The nats per token of the best guess that looks at nothing: these shares, always."""
    shares_K = counts_K[counts_K > 0].double() / counts_K.sum()
    return float(-(shares_K * shares_K.log()).sum())


@dataclass(frozen=True, slots=True)
class DocumentNats:
    """What D documents cost: uids (D,) ascending, nats (D,) float64, tokens asked for (D,)."""

    uids_D: Tensor
    nats_D: Tensor
    asked_D: Tensor

    @property
    def per_token(self) -> float:
        """Give the mean nats over all tokens that were asked for."""
        return float(self.nats_D.sum() / self.asked_D.sum())

    def means(self) -> Tensor:
        """The mean of each document that any token is asked of, float64."""
        some_D = self.asked_D > 0
        return self.nats_D[some_D] / self.asked_D[some_D]


def by_document(uids_B: Tensor, nats_B: Tensor, asked_B: Tensor) -> DocumentNats:
    """Add the rows of each document, which may come in any order."""
    uids_D, document_B = torch.unique(uids_B, return_inverse=True)
    nats_D = torch.zeros(len(uids_D), dtype=torch.float64).index_add(0, document_B, nats_B)
    asked_D = torch.zeros(len(uids_D), dtype=torch.int64).index_add(0, document_B, asked_B)
    return DocumentNats(uids_D, nats_D, asked_D)


@dataclass(frozen=True, slots=True)
class DocumentSizes:
    """How large documents are: tokens that a code of them has, and bytes of their text, (D,)."""

    tokens_D: Tensor
    bytes_D: Tensor


def bits_per_byte(found: DocumentNats, sizes: DocumentSizes) -> tuple[float, Tensor]:
    """Nats per token / ln 2 x tokens per byte: of all documents, and of each with a guess, (D,).

    A first token that nothing stands before, and that is so not asked for, counts as the mean of
    the others.
    """
    whole = found.per_token * float(sizes.tokens_D.sum() / sizes.bytes_D.sum()) / math.log(2)
    some_D = found.asked_D > 0
    rate_D = sizes.tokens_D[some_D].double() / sizes.bytes_D[some_D]
    return whole, found.means() * rate_D / math.log(2)
