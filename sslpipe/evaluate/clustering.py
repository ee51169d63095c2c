"""Clusters of frozen features against classes: k-means with as many clusters as classes.

NMI            mutual information over the mean of both entropies; it grows with the clusters
AMI, ARI       mutual information and pairs, adjusted for chance: 0 is a random partition
accuracy       share of samples in the cluster that is matched to their class, one to one
               (Kuhn 1955, the "Hungarian method"), as in DeepCluster's and SCAN's tables

Of the starts the one of least inertia counts, never the one that fits the labels best.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.nn.functional import normalize

from ..errors import ExtraError, SslpipeError
from .features import Features, matched
from .results import Measure

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ClusteringSettings:
    """`starts` of k-means++; above `whole` samples it takes mini-batches of 4,096.

    Raises:
        SslpipeError: a count below 1.
    """

    starts: int = 10
    iterations: int = 300
    seed: int = 0
    whole: int = 50_000

    def __post_init__(self) -> None:
        if min(self.starts, self.iterations, self.whole) < 1:
            raise SslpipeError(
                f"clustering: starts = {self.starts}, iterations = {self.iterations}, whole = "
                f"{self.whole}: all must be 1 or more"
            )


def clustering(
    train: Features,
    test: Features | None = None,
    settings: ClusteringSettings = ClusteringSettings(),
) -> tuple[Measure, ...]:
    """Cluster the l2-normalised features of the labelled training samples; labels only judge.

    With `test`, its samples are judged, each in the cluster of the nearest centre. The samples are
    taken in the order of their uids, so their order decides nothing. On several cores sums are
    rounded in another order, which may move a sample between two centres that are equally near.

    Raises:
        SslpipeError: no labels, one class, or no class name is in both sets.
        ExtraError: scikit-learn is not installed.
    """
    train = train.labelled()
    train = train.by_uid()
    judged = train if test is None else matched(train, test.labelled())
    classes = len(np.unique(train.labels.numpy()))
    if classes < 2:
        raise SslpipeError(
            f"clustering: all {len(train.labels)} labelled samples are of one class; evaluate on "
            "two or more"
        )
    model = fitted(unit(train), classes, settings)
    clusters = np.asarray(model.predict(unit(judged)), dtype=np.int64)
    how = protocol_of(settings, classes, len(train.labels), float(model.inertia_))
    how += f", judged by {len(judged.labels):,} {'of them' if test is None else 'test samples'}"
    return judgement(clusters, judged.labels.numpy(), how)


def unit(features: Features) -> F32:
    """Features of length 1, (N, D)."""
    made: F32 = normalize(features.features, dim=1).numpy()
    return made


def fitted(points_ND: F32, clusters: int, settings: ClusteringSettings) -> Any:
    """The k-means model of least inertia.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ExtraError(
            "clustering: scikit-learn is not installed; pip install 'sslpipe[train]'"
        ) from error
    common = {
        "n_clusters": clusters,
        "n_init": settings.starts,
        "max_iter": settings.iterations,
        "random_state": settings.seed,
    }
    small = len(points_ND) <= settings.whole
    model = KMeans(**common) if small else MiniBatchKMeans(**common, batch_size=4096)
    with warnings.catch_warnings():
        # a collapsed encoder has fewer points than classes: the numbers say so well enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(points_ND)


def protocol_of(settings: ClusteringSettings, clusters: int, count: int, inertia: float) -> str:
    """The protocol in one line, as far as clusters are made."""
    kind = "k-means" if count <= settings.whole else "mini-batch k-means (batch 4,096)"
    return (
        f"{kind}, {clusters} clusters (as many as classes), best of {settings.starts} starts by "
        f"inertia ({inertia:.4g}), at most {settings.iterations} iterations, seed "
        f"{settings.seed}, {count:,} l2-normalised features"
    )


def judgement(clusters: I64, labels: I64, how: str) -> tuple[Measure, ...]:
    """Compare a partition with labels, both (N,): NMI, AMI, ARI, and the accuracy as matched."""
    from sklearn import metrics

    share = float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    entropies = "arithmetic mean of entropies"
    return (
        Measure("NMI", float(metrics.normalized_mutual_info_score(labels, clusters)),
                f"{how}; {entropies}"),
        Measure("AMI", float(metrics.adjusted_mutual_info_score(labels, clusters)),
                f"{how}; {entropies}, adjusted for chance", chance=0.0),
        Measure("ARI", float(metrics.adjusted_rand_score(labels, clusters)),
                f"{how}; pairs, adjusted for chance", chance=0.0),
        Measure("cluster accuracy", matched_share(clusters, labels),
                f"{how}; one cluster a class, by Hungarian matching on these labels", chance=share),
    )  # fmt: skip


def matched_share(clusters: I64, labels: I64) -> float:
    """The share of samples in the cluster of their class, under the best one-to-one matching."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(labels, clusters)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(labels))
