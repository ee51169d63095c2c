"""Few-shot classification of frozen features: n = 1, 5 or 10 labelled samples per class.

All-way: n of every class, tested on all other samples or the test set, drawn several times; nearest
prototype, nearest neighbour and logistic regression, all on l2-normalised features. The regression
is that of MSN (Assran et al. 2022, logistic_eval.py), but for two things: C is chosen where there
are shots to choose by, and no set is centred by its own mean, which would use the queries'.
For episodes, of a few classes each, see `episodes.py`.
Letters: K classes, S shots, D features, Q queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SslpipeError
from .episodes import EpisodeSettings, episodes
from .features import Features, matched
from .linear import Array, LogisticSettings, answers
from .results import Measure
from .subsets import (
    copies_said,
    distinct,
    in_order,
    mean_of_draws,
    of_large_classes,
    ranks_in_class,
)

CHOOSING_FOLDS = 5
UNIT_GRID = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4)  # C for features of norm 1
SINGLE_C = 4000.0  # of MSN, whose penalty is 0.00025 / N beside the mean loss of N samples


@dataclass(frozen=True, slots=True)
class FewShotSettings:
    """`shots`: labelled samples per class; `draws` of them, each with `shots` inside one another.

    `logistic`: how a regression is fitted; its C is chosen by folds of the shots.
    """

    shots: tuple[int, ...] = (1, 5, 10)
    draws: int = 5
    logistic: LogisticSettings = field(default_factory=lambda: LogisticSettings(grid=UNIT_GRID))
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)
    seed: int = 0


def few_shot(
    train: Features, test: Features | None = None, settings: FewShotSettings = FewShotSettings()
) -> tuple[Measure, ...]:
    """Top-1 of all-way classification by three classifiers, then of episodes, for every n.

    Without a test set, samples outside the shots are the queries; exact copies are left out before.
    Classes with too few samples are left out, and it is said.

    Raises:
        SslpipeError: no labels, no class name in both, fewer than two classes with enough samples,
            or a number of shots, draws, ways, queries or episodes that is too small.
        ExtraError: scikit-learn or scipy is not installed.
    """
    if settings.draws < 1 or min(settings.shots, default=0) < 1:
        raise SslpipeError(
            f"few-shot: {settings.draws} draws of {settings.shots} shots; give 1 or more of each"
        )
    train = in_order(train, "few-shot")
    if test is None:
        train = distinct(train)
    else:
        test = matched(train, test.labelled())
        test = test.by_uid()
    return (
        *all_way(train, test, settings),
        *episodes(train, test, settings.shots, settings.seed, settings.episodes),
    )


def all_way(train: Features, test: Features | None, settings: FewShotSettings) -> list[Measure]:
    """Prototypes, nearest neighbour and logistic regression for every n, over the draws."""
    most = max(settings.shots)
    known, left_out = of_large_classes(train, most + (test is None), "few-shot")
    drawn = [
        ranks_in_class(known, seed=settings.seed, purpose="few-shot", draw=draw)
        for draw in range(settings.draws)
    ]
    made: list[Measure] = []
    chance = 1 / len(torch.unique(known.labels))
    for shots in sorted(settings.shots):
        rows = []
        for ranks_N in drawn:
            queries = known.at(ranks_N >= most) if test is None else within(test, known)
            rows.append(judged(support(known, ranks_N, shots), shots, queries, settings))
        said = copies_said(train, test) if test is not None else ""
        on = f"{len(queries.labels)} queries, {'other samples' if test is None else 'a test set'}"
        how = f"{shots} per class, l2-normalised; mean of {settings.draws} draw(s); {on}{said}"
        made += summed(shots, rows, how + left_out, chance, settings)
    return made


def within(test: Features, known: Features) -> Features:
    """The test samples of the classes that take part.

    Raises:
        SslpipeError: there are none.
    """
    kept = test.at(torch.isin(test.labels, known.labels))
    if not len(kept.labels):
        raise SslpipeError(
            "few-shot: no test sample is of a class with enough training samples; give fewer shots"
        )
    return kept


def support(known: Features, ranks_N: Tensor, shots: int) -> Features:
    """The first samples of each class by rank, class after class."""
    few = known.at((ranks_N < shots).nonzero()[:, 0])
    return few.at(few.labels.argsort(stable=True))


def judged(
    few: Features, shots: int, queries: Features, settings: FewShotSettings
) -> dict[str, float]:
    """The accuracy of each classifier in one draw. `few` is sorted by class, `shots` of each."""
    support_KSD = normalize(few.features, dim=1).reshape(len(few.labels) // shots, shots, -1)
    queries_QD = normalize(queries.features, dim=1)
    names_K = few.labels[::shots]
    prototypes_KD = normalize(support_KSD.mean(dim=1), dim=1)
    near_Q = (queries_QD @ support_KSD.flatten(0, 1).T).argmax(dim=1) // shots
    guesses = {
        "prototypes": names_K[(queries_QD @ prototypes_KD.T).argmax(dim=1)],
        "1-NN": names_K[near_Q],
    }
    rights = {name: (guess == queries.labels) for name, guess in guesses.items()}
    shares = {name: float(right.double().mean()) for name, right in rights.items()}
    return {**shares, "linear": regressed(few, shots, queries, settings)}


def regressed(few: Features, shots: int, queries: Features, settings: FewShotSettings) -> float:
    """The accuracy of logistic regression, with the C of MSN if there is one shot only."""
    if shots == 1:
        fixed = replace(settings.logistic, grid=(SINGLE_C,))
        return float(answers(few, queries, [], fixed, normalised).right.mean())
    folds = min(CHOOSING_FOLDS, shots)
    turn_N = torch.arange(len(few.labels)) % shots % folds
    parts = [turn_N == fold for fold in range(folds)]
    return float(answers(few, queries, parts, settings.logistic, normalised).right.mean())


def normalised(*sets: Features) -> list[Array]:
    """The features of all, float32, of norm 1."""
    return [normalize(each.features, dim=1).numpy() for each in sets]


def summed(
    shots: int, rows: list[dict[str, float]], how: str, chance: float, settings: FewShotSettings
) -> Iterator[Measure]:
    """A measure of every classifier, over the draws."""
    grid = settings.logistic.grid
    by = f" of {len(grid)} from {min(grid):g} to {max(grid):g} by folds of the shots"
    kinds = {
        "prototypes": "nearest prototype (cosine)",
        "1-NN": "nearest neighbour (cosine)",
        "linear": f"logistic regression (L-BFGS, C{by if shots > 1 else f'={SINGLE_C:g}'})",
    }
    for name, kind in kinds.items():
        value, interval = mean_of_draws([row[name] for row in rows])
        yield Measure(f"{shots}-shot {name}", value, f"{kind}, {how}", interval, chance)
