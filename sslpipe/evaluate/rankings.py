"""Rankings of many queries at once: sorted without indexes, scored, and what chance gives.

Letters: Q queries, N samples of the gallery, W places of a ranking that are looked at.
"""

import numpy as np
import numpy.typing as npt

NOWHERE = 1 - 2**31  # below every similarity, and not to be found

Bools = npt.NDArray[np.bool_]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


def best_last(
    similarity_QN: npt.NDArray[np.float32],
    relevant_QN: Bools,
    away_QN: tuple[I64, I64],
    width: int,
) -> Bools:
    """(Q, W): whether the samples in the first `width` places are to be found, the first one last.

    A float as an integer keeps its order, and its last bit has room for the answer: then plain
    integers are sorted, which NumPy does in vectors, and no index is carried along. Similarities
    that differ in that bit alone are equal, and what is not to be found goes first. The memory of
    the similarities is used up.
    """
    keys_QN: I32 = similarity_QN.view(np.int32)
    keys_QN ^= (keys_QN >> 31) & (2**31 - 1)  # negative floats fall where their bits rise
    keys_QN |= 1
    keys_QN -= relevant_QN
    keys_QN[away_QN] = NOWHERE
    count = keys_QN.shape[1]
    if width < count:
        keys_QN.partition(count - width, axis=1)
        keys_QN = keys_QN[:, count - width :]
    keys_QN.sort(axis=1)
    best: Bools = keys_QN & 1 == 0
    return best


def scored(best_QW: Bools, found_Q: I64, ranks: tuple[int, ...]) -> tuple[Bools, F64, F64]:
    """recall@k (Q, ranks), average precision (Q,) and average precision at R (Q,)."""
    count, width = best_QW.shape
    query, column = best_QW.nonzero()
    place = width - column  # 1 is the first
    upto = np.searchsorted(query, np.arange(count), side="right")  # of all queries up to each
    precision = (upto[query] - np.arange(len(query))) / place
    first = np.where(best_QW.any(1), best_QW[:, ::-1].argmax(1), width)
    most = np.maximum(found_Q, 1)
    ap = np.bincount(query, precision, count) / most
    early = place <= found_Q[query]
    ap_at_r = np.bincount(query[early], precision[early], count) / most
    return np.stack([first < k for k in ranks], axis=1), ap, ap_at_r


def chance_of_hit(found_Q: I64, places_Q: I64, k: int) -> F64:
    """How often a random ranking has one of `found` samples among its first k."""
    missed = np.ones(len(found_Q))
    for i in range(k):
        missed *= np.clip(places_Q - found_Q - i, 0, None) / np.maximum(places_Q - i, 1)
    return 1 - missed


def chance_of_ap(found_Q: I64, places_Q: I64, depth_Q: I64) -> F64:
    """The expected average precision of a random ranking over its first `depth` places.

    A place is right with chance found/places, and each place before a right one with
    (found - 1)/(places - 1).
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, depth_Q.max() + 1))])[depth_Q]
    others = (found_Q - 1) / np.maximum(places_Q - 1, 1)
    share = found_Q / places_Q / np.maximum(found_Q, 1)
    expected: F64 = share * (harmonic + (depth_Q - harmonic) * others)
    return expected
