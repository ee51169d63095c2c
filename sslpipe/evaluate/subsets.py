"""Parts of a labelled set, drawn by keys of (seed, uid): the same on any machine, in any order.

Also what protocols that draw have in common: the mean of the draws with its interval, what
guessing gives, and exact copies of samples, by which a set would be tested on what it knows.
"""

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ExtraError, SslpipeError
from ..rng import words64
from .features import Features

Drawn = tuple[float, float | None]  # mean, half the width of its 95 % interval


def in_order(features: Features, protocol: str) -> Features:
    """The labelled samples by ascending uid, so that the order of rows changes no result.

    Raises:
        SslpipeError: no labels, or fewer than two classes; `protocol` says whose.
    """
    known = features.labelled()
    require_classes(known, protocol)
    return known.by_uid()


def require_classes(features: Features, protocol: str) -> None:
    """Check that there is something to tell apart.

    Raises:
        SslpipeError: fewer than two classes; `protocol` says for whom.
    """
    found = len(torch.unique(features.labels))
    if found < 2:
        raise SslpipeError(
            f"{protocol}: {len(features.labels)} usable samples are of {found} class(es); evaluate "
            "on two classes or more, with two samples each"
        )


def random_words(uids_N: Tensor, *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    """(N,) int64 random words, functions of (seed, purpose, draw, uid)."""
    drawn = words64(uids_N.numpy(), seed=seed, stream=purpose, epoch=draw)
    return torch.from_numpy(drawn.astype(np.int64))


def ranks_in_class(features: Features, *, seed: int, purpose: str, draw: int = 0) -> Tensor:
    """(N,) int64: 0, 1, ... in each class, in a random order of its samples.

    The first n of every class are a class-balanced subset.
    """
    keys_N = random_words(features.uids, seed=seed, purpose=purpose, draw=draw)
    order = torch.from_numpy(np.lexsort((keys_N.numpy(), features.labels.numpy())))
    counts_K = torch.unique(features.labels, return_counts=True)[1]
    starts_K = counts_K.cumsum(0) - counts_K
    ranks_N = torch.empty_like(order)
    ranks_N[order] = torch.arange(len(order)) - starts_K.repeat_interleave(counts_K)
    return ranks_N


def class_sizes(labels_N: Tensor) -> Tensor:
    """(N,) int64: how many samples the class of each sample has."""
    _, classes_N, counts_K = torch.unique(labels_N, return_inverse=True, return_counts=True)
    sizes_N: Tensor = counts_K[classes_N]
    return sizes_N


def of_large_classes(features: Features, least: int, protocol: str) -> tuple[Features, str]:
    """The samples of classes that have `least` or more, and how many others there are, in words.

    Raises:
        SslpipeError: there are fewer than two such classes.
    """
    large = class_sizes(features.labels) >= least
    known = features.at(large)
    kept, all_classes = (len(torch.unique(each.labels)) for each in (known, features))
    if kept < 2:
        raise SslpipeError(
            f"{protocol}: {kept} of {all_classes} classes have the {least} samples that are "
            "needed, and two must have; evaluate more samples, or with smaller settings"
        )
    lost = all_classes - kept
    return known, f"; without {lost} class(es) of fewer than {least} samples" if lost else ""


def held_out(features: Features, share: float, *, seed: int, purpose: str) -> Tensor:
    """(N,) bool: True for that share of every class, at least one, never all; none of a single."""
    counts_N = class_sizes(features.labels)
    least_N = counts_N.new_tensor(1).minimum(counts_N - 1)
    wanted_N = (share * counts_N).round().long().maximum(least_N).minimum(counts_N - 1)
    return ranks_in_class(features, seed=seed, purpose=purpose) < wanted_N


def distinct(features: Features) -> Features:
    """Of samples with the same bytes, the first only: a test on the rest is then a fair one."""
    if not len(features.contents):
        return features
    _, group_N = torch.unique(features.contents, return_inverse=True)
    rows = torch.arange(len(group_N))
    first_G = rows.new_full((len(rows),), len(rows)).scatter_reduce(0, group_N, rows, "amin")
    return features.at(first_G[group_N] == rows)


def copies(train: Features, test: Features) -> int:
    """How many test samples have the same bytes as a training sample; 0 if contents are unknown."""
    if not (len(train.contents) and len(test.contents)):
        return 0
    return int(torch.isin(test.contents, train.contents).sum())


def copies_said(train: Features, test: Features) -> str:
    """The same as the end of a protocol line; empty if there are none."""
    found = copies(train, test)
    return f", {found:,} of them exact copies of training samples" if found else ""


def guessing(train_labels: Tensor, test_labels: Tensor) -> float:
    """The accuracy of answering always with the largest class of the training set."""
    return float((test_labels == train_labels.mode().values).double().mean())


def mean_of_draws(values: Sequence[float]) -> Drawn:
    """The mean, and half the width of its 95 % interval by Student's t; None of a single draw.

    Raises:
        ExtraError: scipy is not installed.
    """
    if len(values) < 2:
        return values[0], None
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise ExtraError(
            "evaluation: scipy is not installed; pip install 'sslpipe[train]'"
        ) from error
    error_of_mean = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stdtrit(len(values) - 1, 0.975)) * error_of_mean
