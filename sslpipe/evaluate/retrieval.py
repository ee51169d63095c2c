"""Retrieval with frozen features: are the nearest samples of the query's class?

recall@k       share of queries with a sample of their class among the k nearest; k = 1, 2, 4, 8 as
               for CUB and Cars (Oh Song et al. 2016, "Deep metric learning via lifted structured
               feature embedding")
mAP            mean over queries of the average precision over the whole ranking
mAP@R          the same over the first R, as many as there are to be found (Musgrave et al. 2020,
               "A metric learning reality check", section 3.1)

Cosine similarity. The query itself is not in the ranking, and samples with its very bytes are
neither: they are found by any encoder. Where there are such copies, the numbers that count them as
found stand beside.
Letters: Q queries, N samples of the gallery, W places of a ranking that are looked at.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import SslpipeError
from ..rng import words
from .features import Features, matched
from .knn import similarities
from .rankings import F64, I64, Bools, best_last, chance_of_ap, chance_of_hit, scored
from .results import Measure

LEFT_OUT = "left out"
CELLS = 2**21  # similarities ranked at once: with all that is made of them 50 MB


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """`ranks`: the k of recall@k. `ap_queries`: whole rankings are sorted for at most so many.

    `cells`: similarities held at once; it decides the memory and no number.

    Raises:
        SslpipeError: a rank or a count below 1.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    ap_queries: int = 10_000  # keyed by (seed, uid); to sort 10,000 takes 0.2 ms
    seed: int = 0
    cells: int = CELLS

    def __post_init__(self) -> None:
        if not self.ranks or min(*self.ranks, self.ap_queries, self.cells) < 1:
            raise SslpipeError(
                f"retrieval: ranks = {self.ranks}, ap_queries = {self.ap_queries}, cells = "
                f"{self.cells}: all must be 1 or more"
            )


@dataclass(frozen=True, slots=True)
class Scores:
    """What each query scored: columns of (Q,), and of (Q, ranks) for `hits`.

    `found`: how many are to be found; 0: the query cannot be scored. The average precisions are NaN
    of queries whose ranking was not sorted. `places`: samples of its ranking.
    """

    hits: Bools
    ap: F64
    ap_at_r: F64
    found: I64
    places: I64


def retrieval(
    train: Features,
    test: Features | None = None,
    settings: RetrievalSettings = RetrievalSettings(),
) -> tuple[Measure, ...]:
    """Rank the labelled training samples for each labelled test sample, or for each other.

    Test samples of a class that the training set does not name are left out, and so are queries
    with nothing to be found. Equal similarities count against the encoder: one that maps all
    samples to one point finds nothing. Memory: some 25 bytes for each of `settings.cells`,
    or of the samples of the gallery if these are more.

    Raises:
        SslpipeError: no labels, one class, or no query has another sample of its class.
    """
    gallery = train.labelled().by_uid()
    require_classes(gallery)
    queries = gallery if test is None else matched(gallery, test.labelled()).by_uid()
    same_set = test is None
    copies = copied(gallery, queries, same_set=same_set)
    if not copies:
        return measured(gallery, queries, settings, "", same_set=same_set)
    had = f"({copies:,} queries have some)"
    return tuple(
        measure
        for rule in (f"copies of the query {LEFT_OUT} {had}", f"copies of the query counted {had}")
        for measure in measured(gallery, queries, settings, rule, same_set=same_set)
    )


def require_classes(gallery: Features) -> None:
    """Check that something else than the query's class can be found.

    Raises:
        SslpipeError: one class.
    """
    if int(gallery.labels.amin()) == int(gallery.labels.amax()):
        raise SslpipeError(
            f"retrieval: all {len(gallery.labels)} labelled samples are of one class; evaluate on "
            "two or more"
        )


def copied(gallery: Features, queries: Features, *, same_set: bool) -> int:
    """How many queries have the bytes of another sample of the gallery; 0 where none are known."""
    if not len(gallery.contents) or not len(queries.contents):
        return 0
    contents, counts = np.unique(gallery.contents.numpy(), return_counts=True)
    if same_set:
        return int(counts[counts > 1].sum())
    return int(np.isin(queries.contents.numpy(), contents).sum())


def measured(
    gallery: Features,
    queries: Features,
    settings: RetrievalSettings,
    copies: str,
    *,
    same_set: bool,
) -> tuple[Measure, ...]:
    """All measures of one rule for copies, in words; "": there are none."""
    drop = LEFT_OUT in copies
    parts = [
        scores(gallery, queries.at(rows), settings, width, same_set=same_set, drop=drop)
        for rows, width in groups(queries, gallery, settings)
        if len(rows)
    ]
    columns = ("hits", "ap", "ap_at_r", "found", "places")
    whole = Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    return summary(whole, settings, copies, same_set=same_set)


def groups(
    queries: Features, gallery: Features, settings: RetrievalSettings
) -> list[tuple[Tensor, int]]:
    """Rows of the queries whose whole ranking is sorted, and of the others; places looked at."""
    keys = words(1, seed=settings.seed, epoch=0, stream="retrieval", ids=queries.uids.numpy())
    order = torch.from_numpy(keys[:, 0].astype(np.int64)).argsort(stable=True)
    whole, rest = order[: settings.ap_queries].sort().values, order[settings.ap_queries :]
    count = len(gallery.uids)
    return [(whole, count), (rest.sort().values, min(count, max(settings.ranks)))]


def scores(
    gallery: Features,
    queries: Features,
    settings: RetrievalSettings,
    width: int,
    *,
    same_set: bool,
    drop: bool,
) -> Scores:
    """Score some queries by the first `width` places of their rankings."""
    rows = []
    cells = max(settings.cells, len(gallery.uids))
    labels_N = gallery.labels.numpy().astype(np.int32)
    for start, similarity_QN in similarities(queries.features, gallery.features, cells=cells):
        some = queries.at(torch.arange(start, start + len(similarity_QN)))
        relevant_QN = some.labels.numpy().astype(np.int32)[:, None] == labels_N
        away_QN = outside(gallery, some, same_set=same_set, drop=drop)
        relevant_QN[away_QN] = False
        found = relevant_QN.sum(1)
        places = len(labels_N) - np.bincount(away_QN[0], minlength=len(relevant_QN))
        best_QW = best_last(similarity_QN.numpy(), relevant_QN, away_QN, width)
        rows.append((*scored(best_QW, found, settings.ranks), found, places))
    whole = (np.concatenate(column) for column in zip(*rows, strict=True))
    hits, ap, ap_at_r, found, places = whole
    if width < len(labels_N):
        ap, ap_at_r = np.full(len(ap), np.nan), np.full(len(ap), np.nan)
    return Scores(hits, ap, ap_at_r, found, places)


def outside(gallery: Features, queries: Features, *, same_set: bool, drop: bool) -> tuple[I64, I64]:
    """Queries and samples that are not in their rankings: the query and, with `drop`, its copies.

    Both sets are sorted by uid.
    """
    if drop:  # the query is a copy of itself, if it is in the gallery
        query, sample = (queries.contents[:, None] == gallery.contents).numpy().nonzero()
        return query, sample
    if same_set:
        own = np.searchsorted(gallery.uids.numpy(), queries.uids.numpy())
        return np.arange(len(own)), own
    return np.empty(0, np.int64), np.empty(0, np.int64)


def summary(
    scored: Scores, settings: RetrievalSettings, copies: str, *, same_set: bool
) -> tuple[Measure, ...]:
    """The means over the queries that have something to be found.

    Raises:
        SslpipeError: none has.
    """
    useful = scored.found > 0
    if not useful.any():
        raise SslpipeError(
            f"retrieval: none of the {len(useful)} queries has another sample of its class; "
            "evaluate on classes of two samples or more"
        )
    sorted_ = useful & ~np.isnan(scored.ap)
    how = protocol_of(useful, int(scored.places.max()), copies, same_set=same_set)
    partly = ""
    if (sorted_ != useful).any():
        partly = f"; whole rankings of {sorted_.sum():,} of them, keyed by seed {settings.seed}"
    suffix = ", copies counted" if copies and LEFT_OUT not in copies else ""
    found, places = scored.found, scored.places
    measures = [
        Measure(
            f"recall@{k}{suffix}",
            float(scored.hits[useful, column].mean()),
            how,
            chance=float(chance_of_hit(found[useful], places[useful], k).mean()),
        )
        for column, k in enumerate(settings.ranks)
    ]
    if sorted_.any():
        found, places = found[sorted_], places[sorted_]
        for name, values, depth in (("mAP", scored.ap, places), ("mAP@R", scored.ap_at_r, found)):
            chance = float(chance_of_ap(found, places, depth).mean())
            value = float(values[sorted_].mean())
            measures.append(Measure(name + suffix, value, how + partly, chance=chance))
    return tuple(measures)


def protocol_of(useful: Bools, places: int, copies: str, *, same_set: bool) -> str:
    """Say in one line who was asked for whom, as reports print it."""
    whose = "all other samples" if same_set else "the training samples"
    how = f"retrieval by cosine, {useful.sum():,} queries among {whose} ({places:,})"
    if not useful.all():
        how += f", without {(~useful).sum():,} that have nothing to be found"
    return f"{how}; {copies}" if copies else how
