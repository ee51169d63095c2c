"""Features as points of a plane: PCA and t-SNE, comparable between the checkpoints of a run.

Cosine throughout: features are l2-normalised, so Euclidean distances rank as cosines do.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from ..errors import ExtraError, SslpipeError
from ..evaluate import Features
from ..process import regular_file
from ..rng import words64

F64 = npt.NDArray[np.float64]  # (N, D) features or (N, 2) coordinates of N samples
I64 = npt.NDArray[np.int64]
Projection = Literal["pca", "tsne"]
WIDTH = 50  # principal components that t-SNE is given
PERPLEXITY = 30
START = 1e-4  # std of the first coordinates of t-SNE; points that start wider stay where they are


def stratified(features: Features, count: int, *, seed: int) -> I64:
    """At most `count` rows, each label with its share, by keyed draws of the uids.

    The samples and their order are the same in whatever order the rows come.
    """
    labels, uids = features.labels.numpy(), features.uids.numpy()
    keys = words64(uids, seed=seed, stream="report/stratified")
    share = np.empty(len(uids))  # of its label's samples that come before each
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        share[rows[keys[rows].argsort()]] = (np.arange(len(rows)) + 0.5) / len(rows)
    kept = np.lexsort((keys, share))[:count]
    return np.asarray(kept[keys[kept].argsort()], dtype=np.int64)


def on_sphere(features: Features, rows: I64) -> F64:
    """The l2-normalised features of some rows, (n, D)."""
    chosen = features.features[torch.from_numpy(rows)].double()
    return np.asarray(normalize(chosen, dim=1).numpy(), dtype=np.float64)


def planes(
    clouds: Sequence[F64], *, projection: Projection, previous: F64 | None = None
) -> list[F64]:
    """Coordinates (N, 2) of each cloud of features (N, D) of the same N samples.

    PCA: clouds of one width share their basis, each about its own mean. The map of a cloud of
    another width is turned to lie as the first one does. t-SNE: each map starts where the one
    before it ended. `previous` (N, 2), of an earlier report, is what the first one is turned to
    or starts from; rows that it does not know are nan.

    Raises:
        SslpipeError: fewer than three samples.
        ExtraError: scikit-learn is not installed.
    """
    if len(clouds[0]) < 3:
        raise SslpipeError(
            f"report: a map of {len(clouds[0])} samples says nothing; evaluate three or more"
        )
    flat = principal(clouds)
    flat = [turned(each, flat[0]) for each in flat]
    if previous is not None:
        flat = [turned(each, previous) for each in flat]
    return flat if projection == "pca" else chained(clouds, flat[0], previous)


def principal(clouds: Sequence[F64]) -> list[F64]:
    """The first two principal components of each cloud, in the basis of all of its width."""
    centred = [cloud - cloud.mean(axis=0) for cloud in clouds]
    bases = {
        width: basis(np.concatenate([c for c in centred if c.shape[1] == width]), 2)
        for width in {cloud.shape[1] for cloud in clouds}
    }
    return [cloud @ bases[cloud.shape[1]].T for cloud in centred]


def basis(centred: F64, count: int) -> F64:
    """Principal components (count, D), the largest loading of each positive.

    Components that the samples do not have are zero.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise ExtraError(
            "report: scikit-learn is not installed; pip install 'sslpipe[train]'"
        ) from error
    known = min(count, *centred.shape)
    found = np.zeros((count, centred.shape[1]))
    found[:known] = PCA(known, random_state=0).fit(centred).components_
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)
    return np.asarray(found * np.where(largest < 0, -1, 1))


def turned(points: F64, towards: F64) -> F64:
    """Rotate or mirror a map so that it lies as another of the same samples; distances stay."""
    from scipy.linalg import orthogonal_procrustes

    known = np.isfinite(towards[:, 0])
    if not known.any():
        return points
    goal = towards[known] - towards[known].mean(axis=0)
    turn, _ = orthogonal_procrustes(points[known] - points[known].mean(axis=0), goal)
    return np.asarray(points @ turn)


def chained(clouds: Sequence[F64], flat: F64, previous: F64 | None) -> list[F64]:
    """Maps of t-SNE, each from where the one before it ended; the first from `previous` or PCA.

    van der Maaten and Hinton 2008; perplexity 30, or a third of the samples where they are few.
    """
    from sklearn.manifold import TSNE

    start, found = flat if previous is None else filled(previous, flat), []
    for cloud in clouds:
        centred = cloud - cloud.mean(axis=0)
        narrow = centred @ basis(centred, min(WIDTH, *centred.shape)).T
        perplexity = min(PERPLEXITY, (len(cloud) - 1) / 3)
        spread = start / max(float(start[:, 0].std()), 1e-12) * START
        model = TSNE(perplexity=perplexity, init=spread.astype(np.float32), random_state=0)
        made = np.asarray(model.fit_transform(narrow), dtype=np.float64)
        start = turned(made, start)  # as a whole it may have drifted round, if samples are few
        found.append(start)
    return found


def filled(previous: F64, flat: F64) -> F64:
    """An earlier map; samples that are new stand where PCA has them, in its scale."""
    known = np.isfinite(previous[:, 0])
    scale = previous[known].std() / max(flat[known].std(), 1e-12) if known.any() else 1.0
    return np.where(known[:, None], previous, flat * scale)


def read_map(path: Path, uids: I64) -> F64:
    """Coordinates (N, 2) of uids in the embedding.csv of an earlier report; nan: not there.

    Of several checkpoints the last one counts.

    Raises:
        SslpipeError: there is no such file, or it has no columns uid, x and y.
    """
    try:
        with regular_file(path).open(newline="", encoding="utf-8") as file:
            rows = {int(r["uid"]): (float(r["x"]), float(r["y"])) for r in csv.DictReader(file)}
    except OSError as error:
        raise SslpipeError(
            f"{path}: cannot be read ({error.strerror}); name the embedding.csv of a report"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise SslpipeError(
            f"{path}: is no map ({error}); name the embedding.csv of a report"
        ) from error
    return np.array([rows.get(int(uid), (np.nan, np.nan)) for uid in uids]).reshape(-1, 2)
