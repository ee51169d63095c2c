"""Few-shot episodes: a few random classes, n shots and some queries of each, over and over.

Nearest prototype by Euclidean distance, on features as they are (UN) and, as SimpleShot (Wang et
al. 2019) has it, centred by the mean of the training set and l2-normalised (CL2N).
Letters: E episodes, W classes of an episode (ways), K classes, S shots, Q queries of a class,
D features, X samples drawn from a class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SslpipeError
from ..permutations import permutations
from ..rng import uniforms
from .features import Features
from .results import Measure
from .subsets import copies_said, of_large_classes

CHUNK = 100  # episodes at once: 25 MB of float32 at 512 features and 10 shots

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """`ways` classes and `queries` of each, `count` times; newer papers take 10,000 episodes."""

    ways: int = 5
    queries: int = 15
    count: int = 600


@dataclass(frozen=True, slots=True)
class Episodes:
    """Rows of samples: of the training set, (E, W, shots), and of the tested set, (E, W, Q)."""

    support: Rows
    queries: Rows


def episodes(
    train: Features,
    test: Features | None,
    shots: Sequence[int],
    seed: int,
    settings: EpisodeSettings,
) -> list[Measure]:
    """The mean accuracy of the episodes for every number of shots, with 1.96 std / sqrt(E).

    `train`, and `test` in the same numbers, are labelled and in the order of their uids. Of
    `train` the shots are drawn, of `test` the queries; without one these are other samples of
    `train`. All numbers of shots have the same queries. If there are fewer classes than `ways`,
    all of them are in every episode.

    Raises:
        SslpipeError: fewer than two classes have enough samples, or a setting is too small.
    """
    if settings.ways < 2 or settings.queries < 1 or settings.count < 2:
        raise SslpipeError(
            f"few-shot: {settings.count} episodes of {settings.ways} classes with "
            f"{settings.queries} queries; give at least 2, 2 and 1"
        )
    drawn, left_out = draw(train, test, max(shots), seed, settings)
    tested = train if test is None else test
    ways = drawn.support.shape[1]
    said = copies_said(train, test) if test is not None else ""
    how = (
        f"{settings.count} episodes of {ways} classes with {settings.queries} queries, nearest "
        f"prototype (Euclidean); queries {'from the same set' if test is None else 'of a test set'}"
        f"{said}{left_out}"
    )
    made = []
    for name, (words, bank_ND, tested_ND) in spaces(train.features, tested.features).items():
        for n, right_E in accuracies_of(bank_ND, tested_ND, drawn, sorted(shots)).items():
            half = 1.96 * float(right_E.std()) / settings.count**0.5
            line = f"{words}, {n} per class; {how}"
            mean = float(right_E.mean())
            made.append(Measure(f"{ways}-way {n}-shot {name}", mean, line, half, 1 / ways))
    return made


def spaces(bank_ND: Tensor, tested_ND: Tensor) -> dict[str, tuple[str, Tensor, Tensor]]:
    """What distances are measured in, by SimpleShot's names: in words, and both sets in it."""
    mean_D = bank_ND.mean(dim=0)
    words = f"centred by the mean of {len(bank_ND)} training samples and l2-normalised"
    return {
        "UN": ("features as they are", bank_ND, tested_ND),
        "CL2N": (words, normalize(bank_ND - mean_D), normalize(tested_ND - mean_D)),
    }


def draw(
    train: Features, test: Features | None, shots: int, seed: int, settings: EpisodeSettings
) -> tuple[Episodes, str]:
    """Draw classes, then samples of each; also say which classes were too small to be drawn."""
    least = shots + (settings.queries if test is None else 0)
    large, left_out = of_large_classes(train, least, "few-shot episodes")
    if test is not None:
        joint = test.at(torch.isin(test.labels, large.labels))
        large, more = of_large_classes(joint, settings.queries, "few-shot episodes")
        left_out += more
    names_K = np.unique(large.labels.numpy())
    numbers = np.arange(settings.count)
    order_EK = permutations(len(names_K), seed=seed, epochs=numbers, stream="episodes/classes")
    classes_EW = names_K[order_EK[:, : settings.ways]]
    support = samples(train.labels, classes_EW, least, seed, "episodes/shots")
    if test is None:
        return Episodes(support[..., :shots], support[..., shots:]), left_out
    queries = samples(test.labels, classes_EW, settings.queries, seed, "episodes/queries")
    return Episodes(support, queries), left_out


def samples(labels_N: Tensor, classes_EW: Rows, count: int, seed: int, purpose: str) -> Rows:
    """(E, W, X): rows of `count` different samples of each class of each episode."""
    order_N = labels_N.argsort(stable=True).numpy()
    names_K, starts_K, counts_K = np.unique(
        labels_N.numpy()[order_N], return_index=True, return_counts=True
    )
    found_EW = np.searchsorted(names_K, classes_EW)
    drawn_EWX = uniforms(
        count,
        seed=seed,
        epoch=np.arange(len(classes_EW))[:, None],
        stream=purpose,
        ids=classes_EW,
    )
    places_EWX = without_replacement(counts_K[found_EW], drawn_EWX)
    rows: Rows = order_N[starts_K[found_EW][..., None] + places_EWX]
    return rows


def without_replacement(sizes: Rows, uniform: npt.NDArray[np.float64]) -> Rows:
    """Different numbers below `sizes` (...), as many as there are uniforms (..., X) for each.

    Every ordered choice is equally likely: the i-th is the r-th of those not yet taken, r uniform.
    The cost does not depend on the sizes.
    """
    chosen = np.empty(uniform.shape, dtype=np.int64)
    for step in range(uniform.shape[-1]):
        pick = (uniform[..., step] * (sizes - step)).astype(np.int64)
        for taken in np.moveaxis(np.sort(chosen[..., :step], axis=-1), -1, 0):
            pick += pick >= taken
        chosen[..., step] = pick
    return chosen


def accuracies_of(
    bank_ND: Tensor, tested_ND: Tensor, drawn: Episodes, shots: Sequence[int]
) -> dict[int, Tensor]:
    """(E,) float64 for every number of shots: the share of right answers of each episode."""
    found: dict[int, list[Tensor]] = {n: [] for n in shots}
    both = torch.from_numpy(drawn.support), torch.from_numpy(drawn.queries)
    chunks = (torch.split(rows, CHUNK) for rows in both)
    for support_EWS, queries_EWQ in zip(*chunks, strict=True):
        queries_EXD = tested_ND[queries_EWQ.flatten(1)]
        truth_WQ = torch.arange(queries_EWQ.shape[1])[:, None].expand(queries_EWQ.shape[1:])
        shown_EWSD = bank_ND[support_EWS]
        for n in shots:
            prototypes_EWD = shown_EWSD[:, :, :n].mean(dim=2)
            nearest_EX = torch.cdist(queries_EXD, prototypes_EWD).argmin(dim=-1)
            found[n].append((nearest_EX == truth_WQ.flatten()).double().mean(dim=1))
    return {n: torch.cat(parts) for n, parts in found.items()}
