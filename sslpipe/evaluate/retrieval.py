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

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import SslpipeError
from ..rng import words
from .features import Features, matched
from .knn import similarities
from .rankings import F64, I64, Bools, best_last, chance_of_ap, chance_of_hit, scored
from .results import Measure

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
class RetrievalTask:
    """Who asks for whom, both by ascending uid; `copies` queries have their very bytes in there.

    `same_set`: every sample asks for all others. `drop_copies`: they are in no ranking.
    """

    gallery: Features
    queries: Features
    same_set: bool
    copies: int
    drop_copies: bool = True

    @property
    def suffix(self) -> str:
        """What names of measures end with; empty where no copy is counted as found."""
        return ", copies counted" if self.copies and not self.drop_copies else ""

    def protocol(self, scored: "Scores") -> str:
        """Say in one line who was asked for whom, as reports print it."""
        useful, places = scored.useful, int(scored.places.max())
        whose = "all other samples" if self.same_set else "the training samples"
        how = f"retrieval by cosine, {useful.sum():,} queries among {whose} ({places:,})"
        if not useful.all():
            how += f", without {(~useful).sum():,} that have nothing to be found"
        if not self.copies:
            return how
        done = "left out" if self.drop_copies else "counted"
        return f"{how}; copies of the query {done} ({self.copies:,} queries have some)"


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

    @property
    def useful(self) -> Bools:
        """(Q,): whether a query has something to be found."""
        return self.found > 0


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
    copies = copied(gallery, queries, same_set=test is None)
    task = RetrievalTask(gallery, queries, test is None, copies)
    if not copies:
        return measured(task, settings)
    return measured(task, settings) + measured(replace(task, drop_copies=False), settings)


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


def measured(task: RetrievalTask, settings: RetrievalSettings) -> tuple[Measure, ...]:
    """All measures of one rule for copies."""
    parts = [scores(task, rows, width, settings) for rows, width in groups(task, settings)]
    columns = ("hits", "ap", "ap_at_r", "found", "places")
    whole = Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    return summary(task, whole, settings)


def groups(task: RetrievalTask, settings: RetrievalSettings) -> list[tuple[Tensor, int]]:
    """Rows of the queries whose whole ranking is sorted, and of the others; places looked at."""
    uids, count = task.queries.uids.numpy(), len(task.gallery.uids)
    keys = words(1, seed=settings.seed, epoch=0, stream="retrieval", ids=uids)
    order = torch.from_numpy(keys[:, 0].astype(np.int64)).argsort(stable=True)
    whole, rest = order[: settings.ap_queries].sort().values, order[settings.ap_queries :]
    split = [(whole, count), (rest.sort().values, min(count, max(settings.ranks)))]
    return [(rows, width) for rows, width in split if len(rows)]


def scores(task: RetrievalTask, chosen: Tensor, width: int, settings: RetrievalSettings) -> Scores:
    """Score the `chosen` queries by the first `width` places of their rankings."""
    rows, gallery, queries = [], task.gallery, task.queries.at(chosen)
    cells = max(settings.cells, len(gallery.uids))
    labels_N = gallery.labels.numpy().astype(np.int32)
    for start, similarity_QN in similarities(queries.features, gallery.features, cells=cells):
        some = queries.at(torch.arange(start, start + len(similarity_QN)))
        relevant_QN = some.labels.numpy().astype(np.int32)[:, None] == labels_N
        away_QN = outside(task, some)
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


def outside(task: RetrievalTask, queries: Features) -> tuple[I64, I64]:
    """Pairs of queries and samples that are not in their rankings: the query itself, its copies."""
    gallery = task.gallery
    if task.copies and task.drop_copies:  # a query is a copy of itself, if it is in the gallery
        query, sample = (queries.contents[:, None] == gallery.contents).numpy().nonzero()
        return query, sample
    if task.same_set:
        own = np.searchsorted(gallery.uids.numpy(), queries.uids.numpy())
        return np.arange(len(own)), own
    return np.empty(0, np.int64), np.empty(0, np.int64)


def summary(
    task: RetrievalTask, scored: Scores, settings: RetrievalSettings
) -> tuple[Measure, ...]:
    """The means over the queries that have something to be found.

    Raises:
        SslpipeError: none has.
    """
    useful = scored.useful
    if not useful.any():
        raise SslpipeError(
            f"retrieval: none of the {len(useful)} queries has another sample of its class; "
            "evaluate on classes of two samples or more"
        )
    whole = useful & ~np.isnan(scored.ap)
    how, partly = task.protocol(scored), ""
    if (whole != useful).any():
        partly = f"; whole rankings of {whole.sum():,} of them, keyed by seed {settings.seed}"
    found, places = scored.found, scored.places
    measures = [
        Measure(
            f"recall@{k}{task.suffix}",
            float(scored.hits[useful, column].mean()),
            how,
            chance=float(chance_of_hit(found[useful], places[useful], k).mean()),
        )
        for column, k in enumerate(settings.ranks)
    ]
    if whole.any():
        found, places = found[whole], places[whole]
        for name, values, depth in (("mAP", scored.ap, places), ("mAP@R", scored.ap_at_r, found)):
            chance = float(chance_of_ap(found, places, depth).mean())
            value = float(values[whole].mean())
            measures.append(Measure(name + task.suffix, value, how + partly, chance=chance))
    return tuple(measures)
