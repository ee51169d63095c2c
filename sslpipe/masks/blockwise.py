"""Masks of overlapping random blocks: BEiT's generator, and what iBOT and DINOv2 make of it.

Letters: V views (mask m belongs to view m), B samples, S = V * B masks, H W N patches.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..permutations import permutation
from ..rng import Keys, Place
from .grids import Bools, Grid, boxes, check_plane, choose_patches

Floats = npt.NDArray[np.float64]
TRIES = 10  # proposals that may fail in a row; then a mask stays as it is
AHEAD = 8  # proposals drawn at a time: most masks need 4 to 20


@dataclass(frozen=True, slots=True)
class Blocks:
    """Says which blocks are proposed: areas in patches, uniform; aspect log-uniform."""

    least: int
    most: float  # np.inf: as much as is still to be hidden
    aspect: float  # height / width in [aspect, 1 / aspect]

    def grow(self, budgets_VB: Floats, keys: Keys, stream: str, grid: Grid) -> Bools:
        """Hide block after block until a mask's budget of patches is spent or no block fits.

        `MaskingGenerator` of unilm/beit/masking_generator.py for all masks at once: (V, B, N).
        """
        budgets_S = budgets_VB.ravel()
        hidden_SHW = np.zeros((len(budgets_S), *grid), dtype=bool)
        count_S, fails_S = np.zeros((2, len(budgets_S)), dtype=np.int64)
        growing = np.flatnonzero(budgets_S > 0)  # those of S that are not finished
        for uniforms_S4 in proposals(keys, stream):
            if not len(growing):
                break
            room = np.minimum(budgets_S[growing] - count_S[growing], self.most)
            block, fits = self.propose(uniforms_S4[growing], room, grid)
            new = (block & ~hidden_SHW[growing]).reshape(len(growing), -1).sum(1)
            fits &= (new > 0) & (new <= room)
            hidden_SHW[growing[fits]] |= block[fits]
            count_S[growing] += new * fits
            fails_S[growing] = np.where(fits, 0, fails_S[growing] + 1)
            unfinished = (count_S < budgets_S) & (fails_S < TRIES)
            growing = growing[unfinished[growing]]
        return hidden_SHW.reshape(*budgets_VB.shape, -1)

    def propose(self, uniforms_S4: Floats, room_S: Floats, grid: Grid) -> tuple[Bools, Bools]:
        """Propose a block for each mask, (S, H, W), and say whether it is smaller than the grid."""
        # room < least is meant: random.uniform of the official code takes its ends in any order
        area = self.least + (room_S - self.least) * uniforms_S4[:, 0]
        aspect = np.exp(np.log(self.aspect) * (1 - 2 * uniforms_S4[:, 1]))
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        top = np.floor(uniforms_S4[:, 2] * (grid[0] - height + 1))
        left = np.floor(uniforms_S4[:, 3] * (grid[1] - width + 1))
        return boxes(top, left, height, width, grid), (height < grid[0]) & (width < grid[1])

    def check(self, grid: Grid) -> None:
        """Raise a ValueError if no block is smaller than the grid."""
        fit = (grid[0] - 1) * (grid[1] - 1)
        if self.least > fit:
            raise ValueError(
                f"blocks of {self.least} patches and more do not fit into a grid of {grid[0]} x "
                f"{grid[1]}; set min_patches to {fit} or less"
            )


def proposals(keys: Keys, stream: str) -> Iterator[Floats]:
    """Yield (S, 4) uniforms for one proposal after another, without end."""
    for first in itertools.count(0, AHEAD):
        uniforms_VBP = keys.uniforms(stream, 4 * AHEAD, first=first)
        yield from uniforms_VBP.reshape(-1, AHEAD, 4).swapaxes(0, 1)


def completed(hidden_VBN: Bools, budgets_VB: Floats, keys: Keys, stream: str) -> Bools:
    """Top up to exactly the budget with single random patches (BEiT v2, DINOv3)."""
    words_VBN = keys.words(f"{stream}/complete", hidden_VBN.shape[-1])
    return choose_patches(words_VBN, budgets_VB, preferred=hidden_VBN)


def check_aspect(aspect: float) -> None:
    """Raise a ValueError unless 0 < aspect <= 1."""
    if not 0 < aspect <= 1:
        raise ValueError(f"aspect = {aspect} must lie in (0, 1]: blocks go from it to its inverse")


def check_least(least: int) -> None:
    """Raise a ValueError unless blocks have patches."""
    if least < 1:
        raise ValueError(f"min_patches = {least} must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Blockwise:
    """Hide blocks up to `patches` in all (BEiT, arXiv:2106.08254, algorithm 1).

    finish `stop` leaves a mask when ten proposals in a row do not fit, as BEiT v1 does: of 75
    patches at 14 x 14 it hides 74.5 in the mean, fewer than 65 in 1.4 of 10,000 masks (61 the
    least of 600,000; with Python's random numbers, as officially, 1.5 of 10,000 and 63 the least
    of 100,000). `complete` tops up to exactly `patches`, as BEiT v2 does.
    """

    patches: int = 75
    min_patches: int = 16  # of a block
    max_patches: int | None = None  # of a block; None: no limit
    aspect: float = 0.3
    finish: Literal["stop", "complete"] = "stop"

    def __post_init__(self) -> None:
        check_aspect(self.aspect)
        check_least(self.min_patches)
        if self.max_patches is not None and self.max_patches < self.min_patches:
            raise ValueError(
                f"max_patches = {self.max_patches} is below min_patches = {self.min_patches}"
            )

    @property
    def blocks(self) -> Blocks:
        """The sizes and shapes of blocks that are proposed, in patches."""
        return Blocks(self.min_patches, self.max_patches or np.inf, self.aspect)

    def hidden(self, grid: Grid) -> int | None:
        """Return `patches` if masks are completed to that number, else None.

        Raises:
            ValueError: the grid has fewer patches, or no block fits into it.
        """
        check_plane(grid)
        if not 0 < self.patches < grid[0] * grid[1]:
            raise ValueError(
                f"patches = {self.patches} must lie in (0, {grid[0] * grid[1]}), the patches of "
                f"the {grid[0]} x {grid[1]} grid"
            )
        self.blocks.check(grid)
        return self.patches if self.finish == "complete" else None

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Grow blocks, and complete each mask if `finish` says so."""
        budgets_VB = np.full((len(keys.views), len(keys.uids)), float(self.patches))
        grown = self.blocks.grow(budgets_VB, keys, stream, grid)
        return grown if self.finish == "stop" else completed(grown, budgets_VB, keys, stream)


@dataclass(frozen=True, kw_only=True)
class IBotBlocks:
    """Hide blocks up to a random share of each view (iBOT, arXiv:2111.07832; `loader.py`).

    Each view picks one entry of `ratio`, then a share within `spread` of it: as published half
    of the views stay whole, and the others hide U(0.1, 0.5). Set count to that of the views.
    """

    ratio: tuple[float, ...] = (0.0, 0.3)
    spread: tuple[float, ...] = (0.0, 0.2)
    aspect: float = 0.3

    def __post_init__(self) -> None:
        check_aspect(self.aspect)
        if not self.ratio or len(self.ratio) != len(self.spread):
            raise ValueError(
                f"ratio = {list(self.ratio)} and spread = {list(self.spread)} must be equally long"
            )
        for ratio, spread in zip(self.ratio, self.spread, strict=True):
            if not 0 <= ratio - spread <= ratio + spread < 1:
                raise ValueError(f"ratio {ratio} -+ spread {spread} leaves [0, 1)")

    def blocks(self, grid: Grid) -> Blocks:
        """Blocks have at least a ninth of the grid's patches, as in the official code."""
        return Blocks((min(grid) // 3) ** 2, np.inf, self.aspect)

    def hidden(self, grid: Grid) -> None:
        """Return None: the number differs from view to view."""
        check_plane(grid)
        if min(grid) < 3:
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} patches is too small for blocks; "
                "set patch_size lower"
            )

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Pick the share of each view, then grow blocks up to it."""
        picked, within = np.moveaxis(keys.uniforms(f"{stream}/ratio", 2), -1, 0)
        entry_VB = np.floor(picked * len(self.ratio)).astype(np.int64)
        ratio, spread = (np.asarray(pair)[entry_VB] for pair in (self.ratio, self.spread))
        budgets_VB = (ratio + spread * (2 * within - 1)) * grid[0] * grid[1]
        return self.blocks(grid).grow(budgets_VB, keys, stream, grid)


@dataclass(frozen=True, kw_only=True)
class DINOv2Blocks:
    """Hide blocks in some of the views (DINOv2, arXiv:2304.07193; `collate.py`, `masking.py`).

    mode `reference`: of all views of the global batch exactly `probability` are masked, their
    shares spread evenly over `ratio` and shuffled. `per_sample`: a coin for each view, then
    U(ratio). Set count to that of the views. DINOv3 completes its masks.
    """

    probability: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)
    min_patches: int = 4  # of a block; at most half of the grid
    aspect: float = 0.3
    finish: Literal["stop", "complete"] = "stop"
    mode: Literal["per_sample", "reference"] = "per_sample"

    def __post_init__(self) -> None:
        check_aspect(self.aspect)
        check_least(self.min_patches)
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability = {self.probability} must lie in (0, 1]")
        if not 0 <= self.ratio[0] <= self.ratio[1] < 1:
            raise ValueError(f"ratio = {list(self.ratio)} must rise within [0, 1)")

    def blocks(self, grid: Grid) -> Blocks:
        """Blocks have at most the patches of half of the rows, rounded as train.py does."""
        return Blocks(self.min_patches, grid[0] // 2 * grid[1], self.aspect)

    def hidden(self, grid: Grid) -> None:
        """Return None: the number differs from view to view."""
        check_plane(grid)
        self.blocks(grid).check(grid)

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Decide the share of each view, then grow blocks up to it."""
        shares = {"per_sample": self.tossed, "reference": self.stratified}[self.mode]
        budgets_VB = np.floor(shares(keys, place, f"{stream}/ratio") * grid[0] * grid[1])
        grown = self.blocks(grid).grow(budgets_VB, keys, stream, grid)
        return grown if self.finish == "stop" else completed(grown, budgets_VB, keys, stream)

    def tossed(self, keys: Keys, place: Place, stream: str) -> Floats:
        """Draw the shares to hide, (V, B), each view on its own."""
        coin, within = np.moveaxis(keys.uniforms(stream, 2), -1, 0)
        low, high = self.ratio
        return np.where(coin < self.probability, low + (high - low) * within, 0)

    def stratified(self, keys: Keys, place: Place, stream: str) -> Floats:
        """Draw the shares to hide, (V, B): one view of the global batch in each of equal bins."""
        views = len(keys.views) * place.size
        masked = int(views * self.probability)
        edges = np.linspace(*self.ratio, masked + 1)
        order = permutation(views, seed=keys.seed, epoch=place.step, stream=f"{stream}/order")
        bins = np.minimum(order, masked)  # the last stands for: left whole
        within = place.all_slots(keys).uniforms(stream, 1).ravel()
        widths = np.append(np.diff(edges), 0)
        shares = np.where(bins < masked, edges[bins] + widths[bins] * within, 0)
        return shares.reshape(len(keys.views), place.size)[:, place.slots]
