"""The linear probe as a convex problem: logistic regression on frozen features.

No augmentation, no learning rate, no epochs: nothing to tune and the same answer twice. It is not
the SGD probe of the papers, whose numbers are a little different.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ExtraError, SslpipeError
from .features import Features

FOLDS = 5
ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Linear:
    """Top-1 accuracy in [0, 1] and how it was found."""

    top1: float
    protocol: str


def linear(train: Features, test: Features, *, c: float = 1.0) -> Linear:
    """Fit on the labelled training samples, count right answers on the labelled test samples.

    `c` is scikit-learn's C, the inverse strength of the l2 penalty.

    Raises:
        SslpipeError: no labels, or a single class.
        ExtraError: scikit-learn is not installed.
    """
    x, y = train.labelled().arrays()
    require_classes(y)
    model = classifier(c).fit(x, y)
    test_x, test_y = test.labelled().arrays()
    top1 = float(model.score(test_x, test_y))
    return Linear(top1, describe(c, f"trained on {len(y)} samples, tested on {len(test_y)}"))


def cross_validated(features: Features, *, c: float = 1.0) -> Linear:
    """Mean accuracy of stratified cross-validation, for data without a test set.

    Five folds, or as many as the smallest class has samples.

    Raises:
        SslpipeError: no labels, a single class, or a class of one sample.
        ExtraError: scikit-learn is not installed.
    """
    x, y = features.labelled().arrays()
    folds = min(FOLDS, smallest_class(y))
    model = classifier(c)
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    top1 = float(cross_val_score(model, x, y, cv=split).mean())
    return Linear(top1, describe(c, f"{folds}-fold stratified cross-validation, {len(y)} samples"))


def describe(c: float, data: str) -> str:
    """The protocol in one line."""
    return (
        f"logistic regression (L-BFGS, C={c:g}, at most {ITERATIONS} iterations), "
        f"features standardised by the training samples; {data}"
    )


def classifier(c: float) -> Any:
    """Standardise by the samples it is fitted on, then multinomial logistic regression.

    Raises:
        ExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ExtraError(
            "linear probe: scikit-learn is not installed; pip install 'sslpipe[train]'"
        ) from error
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=ITERATIONS))


def require_classes(labels: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    """Check that there is something to tell apart.

    Raises:
        SslpipeError: a single class.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise SslpipeError(
            f"linear probe: all {len(labels)} labelled samples are of class {classes[0]}; "
            "evaluate on at least two classes"
        )


def smallest_class(labels: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    """Samples of the smallest class.

    Raises:
        SslpipeError: a single class, or a class of one sample.
    """
    require_classes(labels)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        raise SslpipeError(
            f"linear probe: class {classes[counts.argmin()]} has 1 labelled sample, which cannot "
            "be both trained on and tested; give a test set or more samples"
        )
    return int(counts.min())
