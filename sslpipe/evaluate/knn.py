"""Weighted k-nearest-neighbour classification of frozen features.

Wu et al. 2018 (InstDisc), section 3.4, with the settings of DINO's eval_knn.py: l2-normalised
backbone features, k = 10, 20, 100 and 200, a vote of exp(similarity / 0.07) per neighbour.
Letters: Q queries, N samples of the bank, K classes of the bank, X neighbours, R ranks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SslpipeError
from .features import Features, matched
from .results import Measure
from .subsets import copies_said, guessing, in_order

CELLS = 2**24  # similarities held at once: 64 MB of float32, as fast as any larger number

Chunks = Iterable[tuple[int, Tensor]]  # (first query, similarities_QN)


@dataclass(frozen=True, slots=True)
class NeighbourSettings:
    """How many neighbours vote, each number for itself, and the temperature of their votes."""

    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07


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


def neighbours(
    train: Features,
    test: Features | None = None,
    settings: NeighbourSettings = NeighbourSettings(),
) -> tuple[Measure, ...]:
    """Top-1 of every k, and top-5 from five classes on; each k is capped at the bank's size.

    Without a test set every sample is classified by the others, without its exact copies.
    Classes are matched by name; test samples of a class that `train` lacks are left out.

    Raises:
        SslpipeError: no labels, fewer than two classes, no class name in both, or k below 1.
    """
    train = in_order(train, "k-NN")
    if test is None:
        tested, how = train, "each left out in turn with its exact copies"
        found = classified_by_others(train, settings)
    else:
        tested = matched(train, test.labelled())
        how = f"a test set{copies_said(train, tested)}"
        found = classified(train, tested, settings)
    chance = guessing(train.labels, tested.labels)
    return tuple(measure for each in found for measure in measured(each, how, chance, settings))


def measured(found: KNN, how: str, chance: float, settings: NeighbourSettings) -> list[Measure]:
    """Top-1 and, where there is one, top-5; it is said for which k the bank is too small."""
    more = [k for k in settings.ks if k > found.k]
    capped = (
        f", all there are for k={', '.join(map(str, more))}" if found.k not in settings.ks else ""
    )
    protocol = (
        f"weighted k-NN (k={found.k}{capped}, T={found.temperature:g}, cosine), "
        f"bank of {found.bank}; {found.queries} queries, {how}"
    )
    made = [Measure(f"knn{found.k} top-1", found.top1, protocol, chance=chance)]
    if found.top5 is not None:
        chance5 = min(1.0, 5 / found.classes)
        made.append(Measure(f"knn{found.k} top-5", found.top5, protocol, chance=chance5))
    return made


def knn(bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.07) -> KNN:
    """Classify the labelled queries by the labelled bank; `k` is capped at the bank's size.

    Classes are matched by name; queries of a class that the bank does not name are left out.

    Raises:
        SslpipeError: one of the two has no labels, no class name is in both, or k is below 1.
    """
    bank = bank.labelled()
    (found,) = classified(
        bank, matched(bank, queries.labelled()), NeighbourSettings((k,), temperature)
    )
    return found


def leave_one_out(features: Features, *, k: int = 20, temperature: float = 0.07) -> KNN:
    """Classify every labelled sample by all the others, without its exact copies.

    Raises:
        SslpipeError: fewer than two distinct samples have labels, or k is below 1.
    """
    (found,) = classified_by_others(features.labelled(), NeighbourSettings((k,), temperature))
    return found


def classified(bank: Features, queries: Features, settings: NeighbourSettings) -> list[KNN]:
    """Classify queries by the bank, both labelled and in the same numbers, for every k."""
    chunks = similarities(queries.features, bank.features)
    return score(chunks, queries.labels, bank.labels, settings, most=len(bank.labels))


def classified_by_others(features: Features, settings: NeighbourSettings) -> list[KNN]:
    """Classify labelled samples by all others of other contents, for every k.

    Raises:
        SslpipeError: there are no others.
    """
    count = len(features.labels)
    groups_N = features.contents if len(features.contents) else torch.arange(count)
    if (groups_N == groups_N[0]).all():
        copied = "" if count == 1 else " with the same bytes"
        plural = "sample has" if count == 1 else f"samples{copied} have"
        raise SslpipeError(f"k-NN: {count} labelled {plural} no neighbours; evaluate more samples")
    chunks = without_copies(similarities(features.features, features.features), groups_N)
    return score(chunks, features.labels, features.labels, settings, most=count - 1)


def similarities(
    queries_QD: Tensor, bank_ND: Tensor, *, cells: int = CELLS
) -> Iterator[tuple[int, Tensor]]:
    """Cosine similarities in chunks of queries, at most `cells` numbers each."""
    bank_DN = normalize(bank_ND, dim=1).T
    size = max(1, cells // len(bank_ND))
    for start in range(0, len(queries_QD), size):
        yield start, normalize(queries_QD[start : start + size], dim=1) @ bank_DN


def without_copies(chunks: Chunks, groups_N: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Forbid every query the neighbours of its own group, to which it belongs itself."""
    for start, similarity_QN in chunks:
        groups_Q = groups_N[start : start + len(similarity_QN)]
        yield start, similarity_QN.masked_fill_(groups_Q[:, None] == groups_N, -torch.inf)


def capped(ks: Iterable[int], most: int) -> list[int]:
    """The numbers of neighbours in order, once each, those above `most` as `most`.

    Raises:
        SslpipeError: one is below 1, or there is none.
    """
    used = sorted({min(k, most) for k in ks})
    if not used or used[0] < 1:
        raise SslpipeError(f"k-NN: k={used[0] if used else 'nothing'}; give 1 or more")
    return used


def score(
    chunks: Chunks,
    labels_Q: Tensor,
    bank_labels_N: Tensor,
    settings: NeighbourSettings,
    *,
    most: int,
) -> list[KNN]:
    """Vote with every k, and count the queries whose label is among the first one and five."""
    classes_K, bank_classes_N = torch.unique(bank_labels_N, return_inverse=True)
    ks, ranks = capped(settings.ks, most), min(5, len(classes_K))
    hits = torch.zeros(len(ks), ranks, dtype=torch.int64)
    for start, similarity_QN in chunks:
        truth_Q1 = labels_Q[start : start + len(similarity_QN), None]
        voted = votes(similarity_QN, bank_classes_N, len(classes_K), ks, settings.temperature)
        for row, votes_QK in enumerate(voted):
            best = votes_QK.topk(ranks)
            # a class without a vote is never right, wherever the sort happens to put it
            hits[row] += ((classes_K[best.indices] == truth_Q1) & (best.values > 0)).sum(dim=0)
    shares = (hits.cumsum(dim=1).double() / len(labels_Q)).tolist()
    counts = len(labels_Q), len(bank_labels_N), len(classes_K)
    return [
        KNN(top[0], top[4] if ranks == 5 else None, k, settings.temperature, *counts)
        for k, top in zip(ks, shares, strict=True)
    ]


def votes(
    similarity_QN: Tensor,
    bank_classes_N: Tensor,
    classes: int,
    ks: Sequence[int],
    temperature: float,
) -> Iterator[Tensor]:
    """(Q, K) for every k, ascending: the sums of exp(similarity / temperature) over k neighbours.

    The nearest one's is set to 1, which scales all votes of a query alike; else a small
    temperature would overflow float32. The same tensor is yielded again, with more votes.
    """
    nearest = similarity_QN.topk(ks[-1])  # once: the first of them are the nearest of smaller k
    weights_QX = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
    classes_QX = bank_classes_N[nearest.indices]
    votes_QK = similarity_QN.new_zeros(len(similarity_QN), classes)
    for first, k in zip((0, *ks), ks, strict=False):
        yield votes_QK.scatter_add_(1, classes_QX[:, first:k], weights_QX[:, first:k])
