"""The linear probe as a convex problem: logistic regression on frozen features.

No augmentation, no learning rate, no epochs: nothing to tune and the same answer twice. It is not
the SGD probe of the papers, whose numbers are a little different.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ExtraError, SslpipeError
from .features import Features, matched

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
FOLDS = 5
ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Linear:
    """Top-1 accuracy in [0, 1] and how it was found."""

    top1: float
    protocol: str


def linear(train: Features, test: Features, *, c: float = 1.0) -> Linear:
    """Fit on the labelled training samples, count right answers on the labelled test samples.

    `c` is scikit-learn's C, the inverse strength of the l2 penalty. Classes are matched by name;
    test samples of a class that the training set does not name are left out.

    Raises:
        SslpipeError: no labels, a single class, or no class name is in both.
        ExtraError: scikit-learn is not installed.
    """
    train = train.labelled()
    test_x, test_y = matched(train, test.labelled()).arrays()
    x, y = train.arrays()
    require_classes(y)
    model = logistic_regression(c).fit(x, y)
    top1 = float(model.score(test_x, test_y))
    return Linear(top1, protocol_of(c, f"trained on {len(y)} samples, tested on {len(test_y)}"))


def cross_validated(features: Features, *, c: float = 1.0) -> Linear:
    """Mean accuracy of stratified cross-validation, for data without a test set.

    Five folds, or as many as the smallest class has samples; classes of one sample, which cannot
    be both trained on and tested, are left out.

    Raises:
        SslpipeError: no labels, or fewer than two classes.
        ExtraError: scikit-learn is not installed.
    """
    x, y = repeated(*features.labelled().arrays())
    require_classes(y)
    model = logistic_regression(c)
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = min(FOLDS, int(np.unique(y, return_counts=True)[1].min()))
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    top1 = float(cross_val_score(model, x, y, cv=split).mean())
    alone = int((features.labels >= 0).sum()) - len(y)
    how = f"{folds}-fold stratified cross-validation on {len(y)} samples"
    if alone:
        how += f", without {alone} that are alone in their class"
    return Linear(top1, protocol_of(c, how))


def repeated(x: Array, y: Labels) -> tuple[Array, Labels]:
    """The samples whose class has at least two."""
    _, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    keep = counts[classes] > 1
    return x[keep], y[keep]


def protocol_of(c: float, data: str) -> str:
    """The protocol in one line."""
    return (
        f"logistic regression (L-BFGS, C={c:g}, at most {ITERATIONS} iterations), "
        f"features standardised by the training samples; {data}"
    )


def logistic_regression(c: float) -> Any:
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


def require_classes(labels: Labels) -> None:
    """Check that there is something to tell apart.

    Raises:
        SslpipeError: fewer than two classes.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise SslpipeError(
            f"linear probe: {len(labels)} usable samples are of {len(classes)} class(es); "
            "evaluate on two classes or more, with two samples each"
        )
