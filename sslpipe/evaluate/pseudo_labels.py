"""Pseudo-labels: what a probe of few labels says of the rest, how sure it is, and what it is worth.

    few labels -> logistic regression -> the rest, with confidences -> the surest half of each class
               -> logistic regression on both -> its gain on samples that neither has seen

Lee 2013, "Pseudo-label", on frozen features. The share is kept per *predicted* class, else easy
classes take all; confidences are softmax of logits over a temperature that held-out labels chose
(Guo et al. 2017, "On calibration of modern neural networks"), since a probe of few labels is too
sure of itself. One round: more than two drift.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ExtraError, SslpipeError
from .classes import Names
from .dealt_labels import DealtLabels, deal_labels, places_in_classes
from .features import Features
from .linear import MANY_CLASSES, MISSING
from .results import Measure

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
FOLDS = 5
LOG_TEMPERATURES = (-4.0, 4.0)  # natural logarithms of the least and the greatest


@dataclass(frozen=True, slots=True)
class PseudoLabelSettings:
    """`known`: share of a labelled set whose labels are used, to measure what the rest would get.

    `share`: of the samples of each predicted class that are kept, the surest first. `curve`: shares
    that precision is reported for. `c`: scikit-learn's C, not chosen on any label. `seed`: of who
    is known and who is tested, with the uid.

    Raises:
        SslpipeError: a share outside (0, 1].
    """

    known: float = 0.1
    share: float = 0.5
    curve: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0)
    c: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for share in (self.known, self.share, *self.curve):
            if not 0 < share <= 1:
                raise SslpipeError(
                    f"pseudo-labels: a share of {share} is not above 0 and at most 1; give one "
                    "like 0.5"
                )


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """Predicted labels (M,) int64 of the samples `uids` (M,), and confidences (M,) in (0, 1].

    `classes` names the labels, and is empty where they are plain numbers. `temperature`: what the
    logits were divided by.
    """

    uids: Tensor
    labels: Tensor
    confidences: Tensor
    classes: Names
    temperature: float

    def confident(self, share: float) -> "PseudoLabels":
        """The surest `share` of each predicted class, at least one; of equal ones the first uid."""
        order = np.lexsort((self.uids, -self.confidences.numpy(), self.labels))
        _, starts, counts = np.unique(
            self.labels.numpy()[order], return_index=True, return_counts=True
        )
        place = np.arange(len(order)) - np.repeat(starts, counts)
        kept = np.sort(order[place < np.repeat(np.ceil(share * counts), counts)])
        rows = torch.from_numpy(kept)
        return replace(
            self,
            uids=self.uids[rows],
            labels=self.labels[rows],
            confidences=self.confidences[rows],
        )


def pseudo_labels(
    train: Features,
    test: Features | None = None,
    settings: PseudoLabelSettings = PseudoLabelSettings(),
) -> tuple[Measure, ...]:
    """Label what has no label, and measure precision, coverage and gain.

    A set with unlabelled samples is taken as it is: its labels teach, and precision is not known.
    Of a fully labelled one, `settings.known` of each class teaches, at least 2 samples, and the
    labels of the rest only judge. Without `test`, a fifth of each class, keyed by uid, is tested.

    Raises:
        SslpipeError: no labels, one class, or too few samples to test.
        ExtraError: scikit-learn is not installed.
    """
    parts = deal_labels(train, test, known=settings.known, seed=settings.seed)
    predicted = predict(parts.known, parts.rest, settings)
    kept = predicted.confident(settings.share)
    how = (
        f"logistic regression (C={settings.c:g}) of {len(parts.known.labels):,} labels, "
        f"{len(parts.rest.labels):,} samples without, confidences at temperature "
        f"{predicted.temperature:.3g}, seed {settings.seed}"
    )
    surest = f"the surest {settings.share:.0%} of each predicted class; {how}"
    coverage = len(kept.uids) / len(predicted.uids)
    return (
        *precisions(predicted, parts.rest, settings, how),
        Measure("pseudo-label coverage", coverage, surest),
        *gains(parts, kept, settings, surest),
    )


def predict(known: Features, rest: Features, settings: PseudoLabelSettings) -> PseudoLabels:
    """The most likely class of each sample of `rest`; whatever labels it has are not looked at.

    Raises:
        SslpipeError: `known` has one class or no labels, or there is no rest.
        ExtraError: scikit-learn is not installed.
    """
    known = known.labelled()
    if len(np.unique(known.labels.numpy())) < 2:
        raise SslpipeError(
            f"pseudo-labels: all {len(known.labels)} known labels are of one class; label samples "
            "of two or more"
        )
    if not len(rest.uids):
        raise SslpipeError("pseudo-labels: every sample has a label; give samples that have none")
    from scipy.special import softmax

    known = known.by_uid()
    temperature = calibrated(known, settings)
    model = fitted_regression(*known.arrays(), c=settings.c)
    shares_NK = softmax(logits(model, rest.arrays()[0]) / temperature, axis=1)
    labels = model.classes_[shares_NK.argmax(1)]
    return PseudoLabels(
        rest.uids,
        torch.from_numpy(labels),
        torch.from_numpy(shares_NK.max(1)),
        known.classes,
        temperature,
    )


def fitted_regression(x_ND: F64, y_N: I64, *, c: float) -> Any:
    """Standardise by the samples, then fit a multinomial logistic regression.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ExtraError(MISSING) from error
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MANY_CLASSES)
        return model.fit(x_ND, y_N)


def logits(model: Any, x_ND: F64) -> F64:
    """(N, K), also of two classes, for which scikit-learn gives one number a sample."""
    found: F64 = model.decision_function(x_ND)
    return np.stack([np.zeros_like(found), found], axis=1) if found.ndim == 1 else found


def calibrated(known: Features, settings: PseudoLabelSettings) -> float:
    """The temperature of the least log loss on labels that the model was not fitted on.

    Five folds, keyed by uid, or as many as the largest class has samples. A class of one sample is
    always fitted on; 1.0 if all are.
    """
    from scipy.optimize import minimize_scalar

    x_ND, y_N = known.arrays()
    place, count = places_in_classes(known, settings.seed, "folds")
    folds = min(FOLDS, int(count.max()))
    fold = np.where(count > 1, place % folds, -1)
    parts = []
    for number in range(folds if folds > 1 else 0):
        out = fold == number
        model = fitted_regression(x_ND[~out], y_N[~out], c=settings.c)
        truth = np.searchsorted(model.classes_, y_N[out])
        parts.append((logits(model, x_ND[out]), truth))
    if not parts:
        return 1.0
    logits_NK, truth_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = minimize_scalar(
        lambda log: log_loss(logits_NK / math.exp(log), truth_N),
        bounds=LOG_TEMPERATURES,
        method="bounded",
    )
    return math.exp(float(found.x))


def log_loss(logits_NK: F64, truth_N: I64) -> float:
    """The mean of -log of the share of the true class."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits_NK, axis=1)[np.arange(len(truth_N)), truth_N].mean())


def precisions(
    predicted: PseudoLabels, rest: Features, settings: PseudoLabelSettings, how: str
) -> tuple[Measure, ...]:
    """The share of right labels among those kept, and the curve of it; nothing without truth."""
    if (rest.labels < 0).any():
        return ()
    chance = largest_share(rest.labels)
    truth = dict(zip(rest.uids.tolist(), rest.labels.tolist(), strict=True))

    def measure(name: str, share: float) -> Measure:
        kept = predicted.confident(share)
        pairs = zip(kept.uids.tolist(), kept.labels.tolist(), strict=True)
        right = sum(truth[uid] == label for uid, label in pairs) / len(kept.uids)
        said = f"the surest {share:.0%} of each predicted class ({len(kept.uids):,}); {how}"
        return Measure(name, right, said, chance=chance)

    return (
        measure("pseudo-label precision", settings.share),
        *(
            measure(f"pseudo-label precision at {share:.0%}", share)
            for share in settings.curve
            if share != settings.share
        ),
    )


def gains(
    parts: DealtLabels, kept: PseudoLabels, settings: PseudoLabelSettings, how: str
) -> tuple[Measure, ...]:
    """Accuracy with the few labels, with the pseudo-labels as well, and the difference."""
    x_ND, y_N = parts.known.arrays()
    rows = torch.isin(parts.rest.uids, kept.uids)
    more_ND = parts.rest.at(rows).arrays()[0]
    both = np.concatenate([x_ND, more_ND]), np.concatenate([y_N, kept.labels.numpy()])
    test = parts.test.arrays()
    few = float(fitted_regression(x_ND, y_N, c=settings.c).score(*test))
    refit = float(fitted_regression(*both, c=settings.c).score(*test))
    chance = largest_share(parts.test.labels)
    said = f"tested on {len(test[1]):,}: {parts.tested}"
    return (
        Measure("few-label top-1", few, f"{how}; {said}, before", chance=chance),
        Measure("pseudo-label top-1", refit, f"{how}; {said}, fitted on both", chance=chance),
        Measure("pseudo-label gain", refit - few, f"{how}; {said}, a difference", chance=0.0),
    )


def largest_share(labels: Tensor) -> float:
    """How often the answer is the most frequent class."""
    return float(labels.bincount().amax() / len(labels))
