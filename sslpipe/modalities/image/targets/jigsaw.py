"""Jigsaw puzzles: the tiles of a grid in one of many known orders."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....batch import TargetSpec, ViewSpec
from ....rng import Keys
from .tiles import Rule, cut_tiles, one_view, permutation_set, standardise

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class JigsawTask:
    """Cut one view into grid x grid cells, a tile out of each; view v is tile order[v].

    Noroozi and Favaro 2016, arXiv:1603.09246; the defaults are those of VISSL's ResNet-50 (view of
    255 px, 2000 orders); the authors' differ where it says official. Tiles leave random gaps, or
    their edges give the order away. Against colours: RandomGrayscale among the view's ops, `chroma`
    (the official one may leave its cell by 2 px; here the gap shrinks instead), `projection`.
    """

    grid: int = 3
    cell: int = 85  # pixels; the view is grid cells wide and high
    tile: int = 64  # pixels, somewhere in its cell
    chroma: int = 0  # pixels by which a tile's channels are moved apart; official: 2
    projection: float = 0.0  # probability to drop the green-magenta axis; official: 0.5
    normalise: Literal["tile", "none"] = "none"  # tile: each channel of a tile, Brattoli et al.
    permutations: int = 2000
    rule: Rule = "mean"
    seed: int = 0  # of the set of permutations

    def __post_init__(self) -> None:
        if self.grid not in (2, 3):
            raise ValueError(f"grid = {self.grid} must be 2 or 3: more tiles have too many orders")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed} must be 0 or more")
        if self.tile < 1 or self.chroma < 0 or not 0 <= self.projection <= 1:
            raise ValueError(
                f"tile = {self.tile} must be 1 or more, chroma = {self.chroma} 0 or more, "
                f"projection = {self.projection} in [0, 1]"
            )
        if self.tile + self.chroma >= self.cell:
            raise ValueError(
                f"tile + chroma = {self.tile + self.chroma} px leave no gap in cells of "
                f"{self.cell} px, and lines that go on are a shortcut; make the tile smaller"
            )

    @property
    def orders(self) -> I64:
        """(permutations, tiles): which tile stands in which place."""
        return permutation_set(self.grid**2, self.permutations, self.rule, self.seed)

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """One view of three channels in, a view per tile out, one order per sample."""
        side = self.grid * self.cell
        one_view(view, spec, side)
        tiles = replace(spec, count=self.grid**2, shape=(3, self.tile, self.tile))
        return tiles, TargetSpec(view, 1, len(self.orders))

    def draw(self, keys: Keys, stream: str) -> I64:
        """(1, B, 2 + T * C * 2): order, gate of the projection, and corners of the tiles shown."""
        tiles = self.grid**2
        u_BP = keys.uniforms(stream, 2 + 8 * tiles)[0]
        order_B = np.floor(u_BP[:, 0] * self.permutations).astype(np.int64)
        # C = 3; the gap that is left is what tiles and channels may move by
        u_BT42 = u_BP[:, 2:].reshape(-1, tiles, 4, 2)
        room = self.cell - self.tile - self.chroma + 1
        moved_BTC2 = np.floor(u_BT42[:, :, :1] * room) + np.floor(
            u_BT42[:, :, 1:] * (self.chroma + 1)
        )
        shown_BT = self.orders[order_B]
        cells_BT2 = np.stack(np.divmod(shown_BT, self.grid), -1) * self.cell
        corners_BTC2 = cells_BT2[:, :, None] + moved_BTC2.astype(np.int64)
        gate_B = u_BP[:, 1] < self.projection
        return np.column_stack([order_B, gate_B, corners_BTC2.reshape(len(u_BP), -1)])[None]

    def apply(self, views_VBCHW: Tensor, table: I64, there: Tensor) -> tuple[Tensor, Tensor]:
        """Take colour out of some images, cut their tiles and normalise these: (T, B, C, h, w)."""
        view_BCHW = torch.where(
            there[0, :, 1, None, None, None] == 1, without_green_magenta(views_VBCHW[0]),
            views_VBCHW[0],
        )  # fmt: skip
        corners_BTC2 = there[0, :, 2:].reshape(-1, self.grid**2, 3, 2)
        tiles_TBCHW = cut_tiles(view_BCHW, corners_BTC2.transpose(0, 1), self.tile)
        if self.normalise == "tile":
            tiles_TBCHW = standardise(tiles_TBCHW, (-2, -1))
        return tiles_TBCHW, there[..., 0]


def without_green_magenta(images_BCHW: Tensor) -> Tensor:
    """Project each colour onto the plane across green-magenta; Doersch et al. 2015, section 3.1.

    I - a a' / (a' a), a = (-1, 2, -1). Grey stays grey, so the gate is independent of
    RandomGrayscale as in the official code, which projects only what is not grey.
    """
    red, green, blue = images_BCHW.unbind(1)
    share = (2 * green - red - blue) / 6
    return torch.stack([red + share, green - 2 * share, blue + share], dim=1)
