"""Few labels of many: who teaches, who is predicted, who is tested, by (seed, uid)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..errors import SslpipeError
from .features import Features, matched
from .subsets import class_sizes, ranks_in_class

I64 = npt.NDArray[np.int64]
FIFTH = 5


@dataclass(frozen=True, slots=True)
class DealtLabels:
    """Who teaches, who is predicted (with the truth as labels, -1 = none), and who is tested."""

    known: Features
    rest: Features
    test: Features
    tested: str  # who that is, in words


def deal_labels(train: Features, test: Features | None, *, known: float, seed: int) -> DealtLabels:
    """Deal the samples out, in the order of their uids.

    Labels teach as they are where some samples have none; else `known` of each class does, two or
    more. Without `test`, a fifth of each class is tested.

    Raises:
        SslpipeError: no labels, one class, too few samples to test, or none that needs a label.
    """
    train = train.by_uid()
    labelled = train.labelled()
    tested = "the test samples"
    if test is None:
        taken = torch.from_numpy(first_of_classes(labelled, 1 / FIFTH, 0, seed, "test"))
        test, labelled = labelled.at(taken), labelled.at(~taken)
        tested = "a fifth of each class, keyed by uid"
        if not len(test.labels):
            raise SslpipeError(
                f"pseudo-labels: no class has {FIFTH} labelled samples, a fifth of which could be "
                "tested; give a test set, or label more"
            )
    else:
        test = matched(labelled, test.labelled())
    if (train.labels < 0).any():
        return DealtLabels(labelled, train.at(train.labels < 0), test, tested)
    few = torch.from_numpy(first_of_classes(labelled, known, 2, seed, "known"))
    return DealtLabels(labelled.at(few), labelled.at(~few), test, tested)


def first_of_classes(
    features: Features, share: float, least: int, seed: int, name: str
) -> npt.NDArray[np.bool_]:
    """(N,): whether a sample is among the first `share` of its class, `least` or more of them."""
    place, count = places_in_classes(features, seed, name)
    taken: npt.NDArray[np.bool_] = place < np.maximum(np.floor(share * count + 1e-9), least)
    return taken


def places_in_classes(features: Features, seed: int, name: str) -> tuple[I64, I64]:
    """The place of each sample in its class by the keyed words of its uid; the size of the class.

    Both are (N,) and follow from (seed, uid) and the members of the class, not from their order.
    """
    purpose = f"pseudo-labels/{name}"
    place_N = ranks_in_class(features, seed=seed, purpose=purpose)
    return place_N.numpy(), class_sizes(features.labels).numpy()
