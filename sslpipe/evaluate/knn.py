"""Weighted k-nearest-neighbour classification of frozen features.

Wu et al. 2018 (InstDisc), section 3.4, with the settings of DINO's eval_knn.py: l2-normalised
backbone features, k = 20, a vote of exp(similarity / 0.07) per neighbour.
Letters: Q queries, N samples of the bank, K classes of the bank, X neighbours.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SslpipeError
from .features import Features, matched

CELLS = 2**26  # similarities held at once: 256 MB of float32

Chunks = Iterable[tuple[int, Tensor]]  # (first query, similarities_QN)


@dataclass(frozen=True, slots=True)
class KNN:
    """Accuracies in [0, 1]; `top5` is None below five classes; `k` is what was used."""

    top1: float
    top5: float | None
    k: int
    temperature: float
    queries: int
    bank: int
    classes: int


def knn(bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.07) -> KNN:
    """Classify the labelled queries by the labelled bank; `k` is capped at the bank's size.

    Classes are matched by name; queries of a class that the bank does not name are left out.

    Raises:
        SslpipeError: one of the two has no labels, or no class name is in both.
    """
    bank = bank.labelled()
    queries = matched(bank, queries.labelled())
    chunks = similarities(queries.features, bank.features)
    k = min(k, len(bank.labels))
    return score(chunks, queries.labels, bank.labels, k=k, temperature=temperature)


def leave_one_out(features: Features, *, k: int = 20, temperature: float = 0.07) -> KNN:
    """Classify every labelled sample by all the others.

    Raises:
        SslpipeError: fewer than two samples have labels.
    """
    known = features.labelled()
    count = len(known.labels)
    if count < 2:
        raise SslpipeError("k-NN: 1 labelled sample has no neighbours; evaluate more samples")
    chunks = without_self(similarities(known.features, known.features))
    k = min(k, count - 1)
    return score(chunks, known.labels, known.labels, k=k, temperature=temperature)


def similarities(
    queries_QD: Tensor, bank_ND: Tensor, *, cells: int = CELLS
) -> Iterator[tuple[int, Tensor]]:
    """Cosine similarities in chunks of queries, at most `cells` numbers each."""
    bank_DN = normalize(bank_ND, dim=1).T
    size = max(1, cells // len(bank_ND))
    for start in range(0, len(queries_QD), size):
        yield start, normalize(queries_QD[start : start + size], dim=1) @ bank_DN


def without_self(chunks: Chunks) -> Iterator[tuple[int, Tensor]]:
    """Forbid every query the neighbour that stands at its own index."""
    for start, similarity_QN in chunks:
        rows = torch.arange(len(similarity_QN))
        similarity_QN[rows, start + rows] = -torch.inf
        yield start, similarity_QN


def score(
    chunks: Chunks, labels_Q: Tensor, bank_labels_N: Tensor, *, k: int, temperature: float
) -> KNN:
    """Vote, and count the queries whose label is among the first one and the first five."""
    classes_K, bank_classes_N = torch.unique(bank_labels_N, return_inverse=True)
    ranks = min(5, len(classes_K))
    hits = torch.zeros(ranks, dtype=torch.int64)
    for start, similarity_QN in chunks:
        votes_QK = vote(similarity_QN, bank_classes_N, len(classes_K), k, temperature)
        best = votes_QK.topk(ranks)
        truth_Q1 = labels_Q[start : start + len(votes_QK), None]
        # a class without a vote is never right, wherever the sort happens to put it
        right = (classes_K[best.indices] == truth_Q1) & (best.values > 0)
        hits += right.sum(dim=0)
    top = (hits.cumsum(dim=0).double() / len(labels_Q)).tolist()
    return KNN(
        top1=top[0],
        top5=top[4] if ranks == 5 else None,
        k=k,
        temperature=temperature,
        queries=len(labels_Q),
        bank=len(bank_labels_N),
        classes=len(classes_K),
    )


def vote(
    similarity_QN: Tensor, bank_classes_N: Tensor, classes: int, k: int, temperature: float
) -> Tensor:
    """(Q, K): the sum of exp((similarity - 1) / temperature) over the k nearest of each class.

    The -1 scales all votes alike; without it a small temperature overflows float32.
    """
    nearest = similarity_QN.topk(k)
    weights_QX = ((nearest.values - 1) / temperature).exp()
    votes_QK = similarity_QN.new_zeros(len(similarity_QN), classes)
    return votes_QK.scatter_add_(1, bank_classes_N[nearest.indices], weights_QX)
