"""The linear probe as a convex problem: logistic regression on frozen features.

No augmentation, no learning rate, no epochs: one number to choose, and the same answer twice. It is
not the SGD probe of the papers, whose numbers are a little different (see heads.py). C is chosen on
a part of the training labels, as Kornblith et al. 2019 ("Do better ImageNet models transfer
better?", appendix A.4) and DINOv2's eval/log_regression.py do; these try OFFICIAL_GRID.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import ExtraError, SslpipeError
from .features import Features, matched
from .results import Measure
from .subsets import (
    class_sizes,
    copies_said,
    distinct,
    guessing,
    held_out,
    in_order,
    ranks_in_class,
    require_classes,
)

Array = npt.NDArray[np.float32]
Prepare = Callable[..., list[Array]]  # (train, *others) -> columns of each
MISSING = "linear probe: scikit-learn is not installed; pip install 'sslpipe[train]'"
# a few labels of many classes are what few_labels asks for: scikit-learn takes them for regression
MANY_CLASSES = "The number of unique classes is greater than 50%"
OFFICIAL_GRID = tuple(10 ** (-6 + 11 * step / 44) for step in range(45))


@dataclass(frozen=True, slots=True)
class LogisticSettings:
    """`grid`: the values of C to choose from, scikit-learn's inverse strength of the l2 penalty.

    `held_out`: the share of the training labels that chooses. While choosing, L-BFGS stops at a
    gradient of `choosing_tolerance`, which costs a fifth of `tolerance`, at which the chosen one is
    fitted on all training samples.
    """

    grid: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3)
    held_out: float = 0.2
    folds: int = 5  # where there is no test set
    iterations: int = 1000  # at most, for each fit
    tolerance: float = 1e-4
    choosing_tolerance: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Linear:
    """Top-1 accuracy in [0, 1] and how it was found."""

    top1: float
    protocol: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Which of the test samples were answered rightly, (Q,) bool, with the C that was chosen."""

    right: npt.NDArray[np.bool_]
    c: float
    converged: bool


def logistic(
    train: Features, test: Features | None = None, settings: LogisticSettings = LogisticSettings()
) -> tuple[Measure, ...]:
    """Top-1 on the test set; without one, of stratified folds, each with a C of its own.

    Classes are matched by name; test samples of a class that `train` does not name are left out.

    Raises:
        SslpipeError: no labels, fewer than two classes, no class name in both, no class with two
            samples to choose C by, or a C that is not positive.
        ExtraError: scikit-learn is not installed.
    """
    train = in_order(train, "linear probe")
    tested = train if test is None else matched(train, test.labelled())
    found = on_folds(train, settings) if test is None else on_test(train, tested, settings)
    chance = guessing(train.labels, tested.labels)
    return (Measure("linear top-1", found.top1, found.protocol, chance=chance),)


def linear(train: Features, test: Features, *, c: float = 1.0) -> Linear:
    """Fit with a given C on the labelled training samples, count right answers on the test set.

    Raises:
        SslpipeError: as `logistic`.
        ExtraError: scikit-learn is not installed.
    """
    train = in_order(train, "linear probe")
    tested = matched(train, test.labelled())
    return on_test(train, tested, LogisticSettings(grid=(c,)))


def cross_validated(features: Features, *, c: float = 1.0) -> Linear:
    """The accuracy of stratified cross-validation with a given C, for data without a test set.

    Raises:
        SslpipeError: as `logistic`.
        ExtraError: scikit-learn is not installed.
    """
    known = in_order(features, "linear probe")
    return on_folds(known, LogisticSettings(grid=(c,)))


def on_test(train: Features, test: Features, settings: LogisticSettings) -> Linear:
    """Choose C, fit on all of `train`, count right answers on `test`, whose classes are joined."""
    held = held_out(train, settings.held_out, seed=settings.seed, purpose="linear/held-out")
    found = answers(train, test, [held], settings)
    how = (
        f"trained on {len(train.labels)} samples, tested on {len(test.labels)}"
        f"{copies_said(train, test)}"
    )
    return Linear(float(found.right.mean()), protocol_of([found], settings, how))


def on_folds(features: Features, settings: LogisticSettings) -> Linear:
    """Test every sample by a probe of the other folds, in which its C is chosen too.

    As many folds as the smallest class has samples, if these are fewer; classes of one sample,
    which cannot be both trained on and tested, are left out, and so are exact copies.
    """
    once = distinct(features)
    usable = once.at(class_sizes(once.labels) > 1)
    require_classes(usable, "linear probe")
    count = min(settings.folds, int(class_sizes(usable.labels).min()))
    ranks_N = ranks_in_class(usable, seed=settings.seed, purpose="linear/folds")
    found = []
    for fold in range(count):
        train, test = usable.at(ranks_N % count != fold), usable.at(ranks_N % count == fold)
        held = held_out(train, settings.held_out, seed=settings.seed, purpose="linear/held-out")
        found.append(answers(train, test, [held], settings))
    right = np.concatenate([each.right for each in found])
    how = f"{count}-fold stratified cross-validation on {len(right)} samples"
    if alone := len(once.labels) - len(right):
        how += f", without {alone} that are alone in their class"
    if copied := len(features.labels) - len(once.labels):
        how += f", without {copied} exact copies"
    return Linear(float(right.mean()), protocol_of(found, settings, how))


def standardised(train: Features, *others: Features) -> list[Array]:
    """The features of all, float32, with mean 0 and deviation 1 over the samples of `train`.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ExtraError(MISSING) from error
    scaler = StandardScaler().fit(train.arrays()[0])
    # L-BFGS is twice as fast in float32, which is enough once all columns are of one scale
    return [scaler.transform(each.arrays()[0]).astype(np.float32) for each in (train, *others)]


def answers(
    train: Features,
    test: Features,
    parts: Sequence[Tensor],
    settings: LogisticSettings,
    prepare: Prepare = standardised,
) -> Answered:
    """Choose C by the held-out `parts` of `train`, fit on all of it, answer `test`.

    `prepare` makes float32 columns of the samples that are fitted and of those that are not.
    """
    c = choose_c(train, parts, settings, prepare)
    train_x, test_x = prepare(train, test)
    only = replace(settings, grid=(c,))
    (model,) = path(train_x, train.labels.numpy(), only, tolerance=settings.tolerance)
    right = model.predict(test_x) == test.labels.numpy()
    return Answered(right, c, bool(model.n_iter_.max() < settings.iterations))


def choose_c(
    train: Features, parts: Sequence[Tensor], settings: LogisticSettings, prepare: Prepare
) -> float:
    """The C with most right answers on the parts (N,) bool, each held out in turn; ties: least C.

    Raises:
        SslpipeError: no sample is held out, or a C is not positive.
    """
    grid = sorted(settings.grid)
    if not grid or grid[0] <= 0:
        raise SslpipeError(f"linear probe: C is one of {grid}; give numbers above 0")
    if len(grid) == 1:
        return grid[0]
    right = np.zeros(len(grid), dtype=np.int64)
    for held in parts:
        if not held.any():
            raise SslpipeError(
                f"linear probe: no class of {len(held)} training samples has two, to choose C by "
                "one of them; evaluate more samples, or give a single C"
            )
        fitted, judged = train.at(~held), train.at(held)
        fitted_x, judged_x = prepare(fitted, judged)
        truth = judged.labels.numpy()
        tolerance = settings.choosing_tolerance
        models = path(fitted_x, fitted.labels.numpy(), settings, tolerance=tolerance)
        right += [int((model.predict(judged_x) == truth).sum()) for model in models]
    return grid[int(right.argmax())]


def path(
    x: Array, y: npt.NDArray[np.int64], settings: LogisticSettings, *, tolerance: float
) -> list[Any]:
    """Multinomial logistic regressions for the grid, from small C to large, each from the last.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ExtraError(MISSING) from error
    model = LogisticRegression(warm_start=True, max_iter=settings.iterations, tol=tolerance)
    fitted = []
    # products with few columns gain nothing from threads, and lose all where others are at work
    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol line says so
        warnings.filterwarnings("ignore", MANY_CLASSES)
        for c in sorted(settings.grid):
            fitted.append(copy.copy(model.set_params(C=c).fit(x, y)))
    return fitted


def protocol_of(found: Sequence[Answered], settings: LogisticSettings, data: str) -> str:
    """Say in one line all that the accuracy depends on, as reports print it."""
    chosen = sorted({each.c for each in found})
    c = f"C={chosen[0]:g}" + (f" to {chosen[-1]:g}" if len(chosen) > 1 else "")
    grid = sorted(settings.grid)
    if len(grid) > 1:
        c += (
            f" of {len(grid)} from {grid[0]:g} to {grid[-1]:g}, chosen on "
            f"{settings.held_out:.0%} of the training labels"
        )
    missed = "" if all(each.converged for each in found) else ", not converged"
    return (
        f"logistic regression (L-BFGS, {c}, at most {settings.iterations} iterations{missed}), "
        f"features standardised by the training samples; {data}"
    )
