"""The nearest samples of every sample: what k-NN says of it, and what is shown beside it.

The settings are those of the k-NN protocol: cosine, k = 20, a vote of exp(similarity / 0.07).
Letters: Q queries, N samples of the bank, K classes, X neighbours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluate import Features
from ..evaluate.knn import Chunks, similarities

K, TEMPERATURE = 20, 0.07


@dataclass(frozen=True, slots=True)
class Nearest:
    """The X nearest rows of the bank (Q, X), nearest first, and their cosines; -inf: there is none.

    `predicted` (Q,): the class with most votes of all X; -1: nobody voted, or there are no labels.
    """

    rows_QX: Tensor
    cosines_QX: Tensor
    predicted: Tensor


def among(bank: Features, queries: Features, *, k: int = K) -> Nearest:
    """Find the `k` nearest samples of the bank, as many as it has, of queries from elsewhere."""
    return search(similarities(queries.features, bank.features), bank, k)


def left_out(bank: Features, rows: Tensor, *, k: int = K) -> Nearest:
    """The same of some rows of the bank, each without itself and without exact duplicates of it."""
    chunks = similarities(bank.features[rows], bank.features)
    return search(without_equals(chunks, bank, rows), bank, k)


def without_equals(chunks: Chunks, bank: Features, rows: Tensor) -> Chunks:
    """Forbid every query itself, and the samples whose bytes are equal to its own."""
    for start, similarity_QN in chunks:
        own = rows[start : start + len(similarity_QN)]
        similarity_QN.scatter_(1, own[:, None], -torch.inf)
        if len(bank.contents):
            equal_QN = bank.contents[own][:, None] == bank.contents[None]
            similarity_QN.masked_fill_(equal_QN, -torch.inf)
        yield start, similarity_QN


def search(chunks: Chunks, bank: Features, k: int) -> Nearest:
    """Take the nearest of each chunk; of a bank with some labels, of those that have one."""
    k, found = min(k, len(bank.labels)), []
    without = bank.labels < 0 if bool((bank.labels >= 0).any()) else None
    for _, similarity_QN in chunks:
        if without is not None:
            similarity_QN.masked_fill_(without, -torch.inf)
        best = similarity_QN.topk(k)
        found.append((best.indices, best.values, predicted(best.indices, best.values, bank)))
    rows, cosines, classes = (torch.cat(column) for column in zip(*found, strict=True))
    return Nearest(rows, cosines, classes)


def predicted(rows_QX: Tensor, cosines_QX: Tensor, bank: Features) -> Tensor:
    """The class that most of these neighbours vote for, (Q,); -1 where there is no vote."""
    classes_K, numbers_N = torch.unique(bank.labels, return_inverse=True)
    weights_QX = ((cosines_QX - 1) / TEMPERATURE).exp()
    votes_QK = weights_QX.new_zeros(len(rows_QX), len(classes_K))
    most = votes_QK.scatter_add_(1, numbers_N[rows_QX], weights_QX).max(dim=1)
    return torch.where(most.values > 0, classes_K[most.indices], -1)
