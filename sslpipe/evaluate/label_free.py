"""Signs of a representation's worth that need no labels.

RankMe               exp(entropy) of the singular values, uncentred (Garrido et al. 2023, eq. 1)
alpha-ReQ            exponent of the decay lambda_j ~ j^-alpha of the covariance's eigenvalues,
                     fitted as the official code does: least squares of logarithms, each rank j
                     weighted by 1/j (Agrawal et al. 2022; Stringer et al. 2019)
NESum                sum of the eigenvalues over the first (He and Ozay 2022)
participation ratio  (sum of the eigenvalues)^2 / sum of their squares
uniformity           log mean exp(-2 |x - y|^2) over pairs on the unit sphere (Wang and Isola 2020)
std                  of the channels of normalised features, 1/sqrt(D) is healthy (SimSiam)
alignment            mean |x - y|^2 of two views of a sample on the sphere (Wang and Isola 2020)
LiDAR                exp(entropy) of the eigenvalues of W^-1/2 B W^-1/2, B between samples and W
                     within the views of one (Thilak et al. 2024, section 3)

They tell checkpoints of one run, or of one method's settings, apart; not methods: a masked
autoencoder ranks high with a poor k-NN. Compare equal N and D only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..encoders.monitors import effective_rank, embedding_std
from ..errors import SslpipeError
from ..rng import words
from .features import Features
from .results import Measure

NUMERIC = 1e-12  # of the first eigenvalue: below it they are rounding


@dataclass(frozen=True, slots=True)
class LabelFreeSettings:
    """Official values, but for uniformity, which takes all pairs of a batch in the paper.

    `alpha_ranks`: first and last j of the fit of alpha-ReQ, which decide the number. `pairs_of`:
    samples, keyed by (seed, uid), whose pairs uniformity is taken over. `delta`: added to the
    diagonal of LiDAR's W. `eps_rankme`, `eps_lidar`: added to the shares before the entropy.

    Raises:
        SslpipeError: ranks that are none, or a `pairs_of` below 2.
    """

    alpha_ranks: tuple[int, int] = (11, 100)
    pairs_of: int = 2_000
    seed: int = 0
    eps_rankme: float = 1e-7
    delta: float = 1e-4
    eps_lidar: float = 1e-8

    def __post_init__(self) -> None:
        first, last = self.alpha_ranks
        if not 1 <= first < last or self.pairs_of < 2:
            raise SslpipeError(
                f"label-free: alpha_ranks = {self.alpha_ranks}, pairs_of = {self.pairs_of}: give "
                "two ranks of 1 or more that rise, and 2 samples or more"
            )


@dataclass(frozen=True, slots=True)
class Spectra:
    """Descending float64: singular values of the features, eigenvalues of their covariance."""

    singular: Tensor
    eigenvalues: Tensor


def label_free(
    train: Features,
    test: Features | None = None,
    settings: LabelFreeSettings = LabelFreeSettings(),
) -> tuple[Measure, ...]:
    """Measure all signs that one view of each sample allows, on all training samples.

    `test` is there because every protocol has it, and is not looked at. alpha-ReQ is missing where
    fewer than three of its ranks have an eigenvalue.

    Raises:
        SslpipeError: fewer than two samples.
    """
    features = in_order(train)
    z_ND = features.features
    found = spectra(z_ND)
    how = spectral_protocol(len(z_ND), z_ND.shape[1])
    rank = float(effective_rank(found.singular, eps=settings.eps_rankme))
    eigenvalues = found.eigenvalues
    total, first = float(eigenvalues.sum()), float(eigenvalues[0])
    squares = float(eigenvalues.square().sum())
    return (
        Measure("RankMe", rank, f"uncentred, eps {settings.eps_rankme:g}, {how}"),
        *alpha_req(eigenvalues, settings, how),
        Measure("NESum", total / first if first else 0.0, f"centred, {how}"),
        Measure("participation ratio", total**2 / squares if squares else 0.0, f"centred, {how}"),
        uniformity(features, settings),
        Measure(
            "std of channels",
            float(embedding_std(z_ND)),
            f"mean over l2-normalised channels; {1 / math.sqrt(z_ND.shape[1]):.4f} = 1/sqrt(D) is "
            f"healthy, 0 collapse; {len(z_ND):,} samples",
        ),
    )


def in_order(features: Features) -> Features:
    """The samples in the order of their uids: sums are rounded in one order only.

    Raises:
        SslpipeError: fewer than two.
    """
    if len(features.uids) < 2:
        raise SslpipeError(
            f"label-free: {len(features.uids)} sample(s) have no spread; evaluate two or more"
        )
    return features.by_uid()


def spectra(z_ND: Tensor) -> Spectra:
    """Both spectra, by decompositions of (D, D) in float64, or of (N, N) where N is smaller."""
    z_ND = z_ND.double()
    singular = gram_spectrum(z_ND).sqrt()
    return Spectra(singular, gram_spectrum(z_ND - z_ND.mean(0)) / (len(z_ND) - 1))


def gram_spectrum(z_ND: Tensor) -> Tensor:
    """The squares of the singular values, (min(N, D),), the largest first."""
    gram = z_ND.T @ z_ND if len(z_ND) >= z_ND.shape[1] else z_ND @ z_ND.T
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp_min(0)


def spectral_protocol(samples: int, width: int) -> str:
    """What all spectra have in common, with a warning where they say more of N than of the net."""
    how = f"spectrum of {samples:,} x {width} in float64; compare equal N and D only"
    if samples < 2 * width:
        how += f" (unsure: fewer than 2 D = {2 * width:,} samples)"
    return how


def alpha_req(
    eigenvalues: Tensor, settings: LabelFreeSettings, how: str
) -> tuple[Measure] | tuple[()]:
    """The exponent of the decay; nothing where fewer than three ranks of the fit have a value."""
    first, last = settings.alpha_ranks
    usable = int((eigenvalues > NUMERIC * eigenvalues[0]).sum())
    last = min(last, usable)
    if last - first < 2:
        return ()
    ranks = torch.arange(first, last + 1, dtype=torch.float64)
    x, y, weights = ranks.log(), eigenvalues[first - 1 : last].log(), 1 / ranks
    x = x - (weights * x).sum() / weights.sum()
    slope = float((weights * x * y).sum() / (weights * x * x).sum())
    said = f"fit of ranks {first} to {last}, weighted by 1/rank; near 1 is good; centred, {how}"
    return (Measure("alpha-ReQ", -slope, said),)


def uniformity(features: Features, settings: LabelFreeSettings) -> Measure:
    """Of all pairs of at most `pairs_of` keyed samples; -4 is the least that one can hope for."""
    keys = words(1, seed=settings.seed, epoch=0, stream="label-free", ids=features.uids.numpy())
    rows = np.sort(keys[:, 0].argsort(kind="stable")[: settings.pairs_of])
    x_ND = normalize(features.features[torch.from_numpy(rows)].double(), dim=1)
    log_mean = torch.pdist(x_ND).square().mul(-2).logsumexp(0) - math.log(
        len(rows) * (len(rows) - 1) // 2
    )
    how = (
        f"log mean exp(-2 |x - y|^2) over all pairs of {len(rows):,} l2-normalised samples, keyed "
        f"by seed {settings.seed}; 0 is collapse, about -4 even; read it beside alignment"
    )
    return Measure("uniformity", float(log_mean), how)


def label_free_of_views(
    views: Sequence[Features],
    settings: LabelFreeSettings = LabelFreeSettings(),
) -> tuple[Measure, ...]:
    """Alignment and LiDAR of the features of several augmented views of the same samples.

    The order of the samples may differ between views. Gather all ranks' features first: LiDAR of a
    part is not a part of LiDAR. The paper takes 1,000 samples of 50 views each.

    Raises:
        SslpipeError: fewer than two views or samples, or views of other samples.
    """
    z_QND = stacked(views)
    q, n, width = z_QND.shape
    how = f"{n:,} samples x {q} views x {width}"
    unsure = "" if n > width else f" (unsure: its rank is at most n - 1 = {n - 1}, below D)"
    return (
        Measure(
            "alignment",
            alignment(normalize(z_QND, dim=2)),
            f"mean |x - y|^2 over all pairs of views, l2-normalised; {how}",
        ),
        Measure(
            "LiDAR",
            lidar(z_QND, delta=settings.delta, eps=settings.eps_lidar),
            f"delta {settings.delta:g}, eps {settings.eps_lidar:g}; {how}{unsure}",
        ),
    )


def stacked(views: Sequence[Features]) -> Tensor:
    """(Q, N, D) float64: the views of the same samples, in the order of their uids.

    Raises:
        SslpipeError: fewer than two views or samples, or views of other samples.
    """
    if len(views) < 2:
        raise SslpipeError(f"label-free: {len(views)} view(s) have no pairs; give two or more")
    ordered = [in_order(view) for view in views]
    for number, view in enumerate(ordered):
        if not torch.equal(view.uids, ordered[0].uids):
            raise SslpipeError(
                f"label-free: view {number} is of other samples ({len(view.uids):,}) than view 0 "
                f"({len(ordered[0].uids):,}); extract all views from the same shards"
            )
    return torch.stack([view.features.double() for view in ordered])


def alignment(x_QND: Tensor) -> float:
    """The mean over pairs of views of |x - y|^2.

    The sum over all pairs of Q points is Q times the sum of squared distances to their mean.
    """
    count = len(x_QND)
    spread = (x_QND - x_QND.mean(0)).square().sum(dim=(0, 2)).mean()
    return float(spread * count / (count * (count - 1) / 2))


def lidar(z_QND: Tensor, *, delta: float, eps: float) -> float:
    """The effective rank of W^-1/2 B W^-1/2; both scatters are unbiased, and W gets delta.

    With W = L L^T, its eigenvalues are those of L^-1 B L^-T, which needs no root.
    """
    q, n, width = z_QND.shape
    means_ND = z_QND.mean(0)
    inner = (z_QND - means_ND).reshape(q * n, width)
    outer = means_ND - means_ND.mean(0)
    within = inner.T @ inner / (n * (q - 1)) + delta * torch.eye(width, dtype=z_QND.dtype)
    root = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(root, outer.T, upper=False)
    values = torch.linalg.eigvalsh(whitened @ whitened.T / (n - 1)).clamp_min(0)
    return float(effective_rank(values, eps=eps))
