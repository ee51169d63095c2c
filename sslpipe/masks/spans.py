"""Masks over steps of time: wav2vec 2.0's spans, and AudioMAE's bands of time and frequency.

Letters: M masks per sample, B samples, T steps, S places where a span can begin.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..rng import U64, Keys, Place
from .grids import Bools, Grid, check_fraction, choose_patches

I64 = npt.NDArray[np.int64]


@runtime_checkable
class WithinReal(Protocol):
    """A sampler whose masks may lie in what is no padding: `spans`."""

    def most(self, grid: Grid) -> int | None:
        """Return how many patches a mask hides at most, if it looks at lengths; None: it does not.

        Masks of full length hide as many.
        """
        ...

    def draw_within(self, keys: Keys, stream: str, grid: Grid, real_B: I64) -> Bools:
        """Draw (M, B, N) bool, of which the first `real_B` patches of each sample may be hidden."""
        ...


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Hide spans of `mask_length` steps that may overlap (wav2vec 2.0, arXiv:2006.11477, 3.1).

    fairseq, data/data_utils.py, compute_mask_indices(static, min_masks 2): max(2, int(mask_prob * T
    / mask_length + u)) starts, u uniform, without repeats, none so late that the last step is
    hidden. About half of the steps are (0.492 of 500), in runs of `mask_length` and more.

    counts: `free`, as there, of a single row. `equal`: every mask hides the mean of that, rounded:
    spans are added in random order as long as they fit whole, then the first that adds exactly
    what is left; where none does (in 3 of 100,000 masks over 49 steps), the next one without its
    trailing steps. Deviation: officially the rows of a batch are made equal by showing single
    steps of them, which leaves runs of 4 to 7 and hides less; here a mask is its sample's own.
    `real`: as `equal`, of the steps that are no padding (`Batch.lengths`), so every sample hides as
    large a part of its sound; one that is too short for spans hides one span of that part.
    """

    mask_prob: float = 0.65  # steps of all spans, overlaps counted twice, per step of the view
    mask_length: int = 10
    counts: Literal["equal", "free", "real"] = "equal"

    def __post_init__(self) -> None:
        check_fraction("mask_prob", self.mask_prob)
        if self.mask_length < 1:
            raise ValueError(f"mask_length = {self.mask_length}; a span has one step or more")

    def hidden(self, grid: Grid) -> int | None:
        """Round the mean number of hidden steps to whole steps; None where counts differ.

        Raises:
            ValueError: the grid has more than one axis, or is too short for two spans.
        """
        steps = self.steps(grid)
        return self.within(steps, steps) if self.counts == "equal" else None

    def most(self, grid: Grid) -> int | None:
        """Tell what a sample without padding hides, where counts go by what is real."""
        steps = self.steps(grid)
        return self.within(steps, steps) if self.counts == "real" else None

    @lru_cache(maxsize=64)  # noqa: B019  frozen settings, and asked for with every batch
    def steps(self, grid: Grid) -> int:
        """Tell how many steps a grid has.

        Raises:
            ValueError: it has two axes, or no room.
        """
        if len(grid) != 1:
            raise ValueError(
                f"spans lie along one axis, but these views have {len(grid)} to mask; use bands "
                "or random"
            )
        most = int(np.floor(self.starts(grid[0]))) + 1
        if not self.has_room(grid[0]):
            raise ValueError(
                f"{most} spans of {self.mask_length} steps find no room in {grid[0]}; make the "
                "views longer, or mask_length shorter"
            )
        return grid[0]

    def starts(self, steps: int) -> float:
        """Tell how many spans are begun in the mean, before rounding; two at least."""
        return max(2.0, self.mask_prob * steps / self.mask_length)

    def mean(self, steps: int) -> float:
        """Compute how many steps the spans of a row hide in the mean: their union, exactly."""
        places, spans = steps - self.mask_length, self.starts(steps)
        step = np.arange(steps)
        over = np.minimum(step, places - 1) - np.maximum(step - self.mask_length + 1, 0) + 1
        few = math.floor(spans)
        free = [unchosen(places, n, np.maximum(over, 0)) for n in (few, few + 1)]
        return float((1 - free[0] + (spans - few) * (free[0] - free[1])).sum())

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Take the spans with the smallest random words."""
        steps = self.steps(grid)
        order_MBS = distinct(keys.words(stream, steps - self.mask_length))
        if self.counts != "free":
            return self.equal(order_MBS, steps, self.within(steps, steps))
        u_MB1 = keys.uniforms(f"{stream}/starts", 1)
        spans_MB1 = np.floor(self.starts(steps) + u_MB1 * (self.starts(steps) > 2)).astype(np.int64)
        last_MB1 = np.take_along_axis(np.sort(order_MBS, axis=-1), spans_MB1 - 1, axis=-1)
        return self.first_spans(order_MBS, steps) <= last_MB1

    def first_spans(self, order_MBS: U64, steps: int) -> U64:
        """Find the smallest word of the spans over each step, (M, B, T); the largest: none."""
        length, wide = self.mask_length, 1
        edge = np.full((*order_MBS.shape[:-1], length), np.iinfo(np.uint64).max)
        first = np.concatenate([edge[..., 1:], order_MBS, edge], axis=-1)
        while 2 * wide <= length:  # of `wide` places, then of twice as many
            first = np.minimum(first[..., :-wide], first[..., wide:])
            wide *= 2
        out: U64 = np.minimum(first[..., :steps], first[..., length - wide :][..., :steps])
        return out

    def equal(self, order_MBS: U64, steps: int, count: int) -> Bools:
        """Hide exactly `count` steps of each mask."""
        first_MBT = self.first_spans(order_MBS, steps)
        edge_MB1 = np.partition(first_MBT, count, axis=-1)[..., count : count + 1]
        hidden_MBT = first_MBT < edge_MB1
        left_MB1 = count - hidden_MBT.sum(-1, keepdims=True)
        shown_MBT = np.zeros((*hidden_MBT.shape[:-1], steps + 1), dtype=np.int64)
        np.cumsum(~hidden_MBT, axis=-1, out=shown_MBT[..., 1:])
        last = order_MBS.shape[-1]
        adds_MBS: I64 = shown_MBT[..., self.mask_length :][..., :last] - shown_MBT[..., :last]
        fits_MBS = adds_MBS == left_MB1
        none_MB1 = ~fits_MBS.any(-1, keepdims=True)
        fits_MBS |= none_MB1 & (adds_MBS > left_MB1)
        late = np.iinfo(np.uint64).max
        start_MB1 = np.where(fits_MBS, order_MBS, late).argmin(-1)[..., None]
        step = np.arange(steps)
        span_MBT = (step >= start_MB1) & (step < start_MB1 + self.mask_length) & ~hidden_MBT
        whole: Bools = hidden_MBT | span_MBT & (span_MBT.cumsum(-1) <= left_MB1)
        return whole

    def draw_within(self, keys: Keys, stream: str, grid: Grid, real_B: I64) -> Bools:
        """Take the spans with the smallest random words among those that end in what is real.

        As `draw` of a grid of `real_B` steps; samples of one length are drawn together.
        """
        order_MBS = distinct(keys.words(stream, self.steps(grid) - self.mask_length))
        hidden_MBT = np.zeros((*order_MBS.shape[:2], *grid), dtype=np.bool_)
        for real in np.unique(real_B).tolist():
            here, count = real_B == real, self.within(grid[0], real)
            if self.has_room(real):
                part = self.equal(order_MBS[:, here, : real - self.mask_length], real, count)
            else:
                word_MB1 = order_MBS[:, here, :1] >> np.uint64(31)  # without its index
                start_MB1 = word_MB1 % np.uint64(max(real - count, 1))
                step = np.arange(real)
                part = (step >= start_MB1) & (step < start_MB1 + np.uint64(count))
            hidden_MBT[:, here, :real] = part
        return hidden_MBT

    def has_room(self, steps: int) -> bool:
        """Tell whether so many steps have room for as many spans as are begun in them."""
        return steps - self.mask_length > math.floor(self.starts(steps)) + 1

    @lru_cache(maxsize=4096)  # noqa: B019  frozen settings; a mean of 800 steps takes 0.1 ms
    def within(self, steps: int, real: int) -> int:
        """Count what is hidden of `real` steps; of too few for spans the share of a whole grid."""
        if self.has_room(real):
            return round(self.mean(real))
        return max(0, min(real - 1, round(real * self.mean(steps) / steps)))


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Hide whole columns of time and whole rows of frequency (AudioMAE, arXiv:2207.06405, 3.2).

    Of a grid (F, T): facebookresearch/AudioMAE, models_mae.py, random_masking_2d, which is off in
    its pretraining script (`mask_2d`).
    """

    time: float = 0.7  # of the columns
    frequency: float = 0.3  # of the rows

    def __post_init__(self) -> None:
        check_fraction("time", self.time)
        check_fraction("frequency", self.frequency)

    def kept(self, grid: Grid) -> Grid:
        """Count the rows and columns that stay, rounded down as officially.

        Raises:
            ValueError: the grid has not two axes.
        """
        if len(grid) != 2:
            raise ValueError(
                f"bands need time and frequency, but these views have {len(grid)} axes to mask; "
                "use spans"
            )
        return int(grid[0] * (1 - self.frequency)), int(grid[1] * (1 - self.time))

    def hidden(self, grid: Grid) -> int:
        """Count the patches of all bands."""
        return math.prod(grid) - math.prod(self.kept(grid))

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Keep rows and columns of the smallest random words."""
        words_MBP = keys.words(stream, sum(grid))
        rows, columns = self.kept(grid)
        row_MBF = choose_patches(words_MBP[..., : grid[0]], rows)
        column_MBT = choose_patches(words_MBP[..., grid[0] :], columns)
        kept = row_MBF[..., :, None] & column_MBT[..., None, :]
        return ~kept.reshape(*kept.shape[:2], -1)


def distinct(words_MBS: U64) -> U64:
    """Make words of which no two of a row are equal, in the same order; u32 become u64."""
    index = np.arange(words_MBS.shape[-1], dtype=np.uint64)
    return np.ascontiguousarray(words_MBS) << np.uint64(31) | index


def unchosen(places: int, spans: int, over: I64) -> npt.NDArray[np.float64]:
    """Compute how likely none of `spans` starts, of `places`, is one of the `over` that matter.

    Starts are drawn without return; `over` (n,) int64, the answer (n,) float64 in [0, 1].
    """
    free = np.maximum(places - over[:, None] - np.arange(spans), 0)
    likely: npt.NDArray[np.float64] = np.prod(free / (places - np.arange(spans)), axis=1)
    return likely
