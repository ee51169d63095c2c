"""Relative position: two patches of one view, the second in one of eight places around the first.

W words of a key here.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....batch import TargetSpec, ViewSpec
from ....philox import philox_torch
from ....rng import Keys
from .tiles import cut_tiles, one_view, over_rms

I64 = npt.NDArray[np.int64]
# row-major around the centre, as `pos2lbl`; place 7 - k is opposite to k
PLACES = np.array([(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)])
CENTRE = np.array([1, 1])


@dataclass(frozen=True, kw_only=True)
class RelativePatchTask:
    """The centre of a 3 x 3 grid of patches and one of its eight neighbours.

    Doersch et al. 2015, arXiv:1505.05192; cdoersch/deepcontext, train.py. Gap and jitter hide edges
    that go on; one channel alone is kept, for colours tell the place in a lens's image. The
    official code lays 4 grids over an image and pairs all neighbours; here a view holds one pair.
    """

    patch: int = 96  # pixels
    gap: int = 48
    jitter: int = 7  # pixels either way, of each patch and axis
    downsample: float = 0.33  # probability to shrink a patch and enlarge it again
    downsample_pixels: tuple[int, int] = (100, 9025)  # of a shrunken patch, evenly drawn

    def __post_init__(self) -> None:
        low, high = self.downsample_pixels
        if min(self.patch, self.jitter) < 1 or not 0 <= self.downsample <= 1:
            raise ValueError(
                f"patch = {self.patch} and jitter = {self.jitter} must be 1 or more, "
                f"downsample = {self.downsample} in [0, 1]"
            )
        if self.gap <= 2 * self.jitter:
            raise ValueError(
                f"gap = {self.gap} px is closed by jitter = {self.jitter} px either way, and edges "
                "that go on are a shortcut; set it above twice the jitter"
            )
        if not 1 <= low <= high <= self.patch**2:
            raise ValueError(
                f"downsample_pixels = [{low}, {high}] must be rising and lie in "
                f"[1, {self.patch**2}], the pixels of a patch"
            )

    @property
    def side(self) -> int:
        """Pixels of the view: three patches, two gaps, and room to move."""
        return 3 * self.patch + 2 * self.gap + 2 * self.jitter

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """One view in, two patches out, one of eight places per sample."""
        one_view(view, spec, self.side)
        pair = replace(spec, count=2, shape=(3, self.patch, self.patch))
        return pair, TargetSpec(view, 1, len(PLACES))

    def draw(self, keys: Keys, stream: str) -> I64:
        """(1, B, 1 + 2 * 8): place; then of each patch corner, channel, side, key of its noise."""
        u_BP = keys.uniforms(stream, 11)[0]
        place_B = np.floor(u_BP[:, 0] * len(PLACES)).astype(np.int64)
        u_B25 = u_BP[:, 1:].reshape(-1, 2, 5)
        cells_B22 = np.stack([np.broadcast_to(CENTRE, (len(u_BP), 2)), PLACES[place_B]], 1)
        moved_B22 = np.floor(u_B25[..., :2] * (2 * self.jitter + 1)).astype(np.int64)
        corners_B22 = cells_B22 * (self.patch + self.gap) + moved_B22
        kept_B2 = np.floor(u_B25[..., 2] * 3).astype(np.int64)
        noise_B24 = keys.words(f"{stream}/noise", 8)[0].reshape(-1, 2, 4).astype(np.int64)
        sides_B2 = self.sides(u_B25[..., 3], u_B25[..., 4])
        patches_B28 = np.concatenate(
            [corners_B22, np.stack([kept_B2, sides_B2], -1), noise_B24], axis=-1
        )
        return np.column_stack([place_B, patches_B28.reshape(len(u_BP), -1)])[None]

    def sides(self, gate: npt.NDArray[np.float64], u: npt.NDArray[np.float64]) -> I64:
        """Pixels on the side that a patch is shrunk to; its own where it is not."""
        low, high = self.downsample_pixels
        shrunk = np.floor(np.sqrt(low + u * (high - low))).astype(np.int64)
        return np.where(gate < self.downsample, shrunk, self.patch)

    def apply(self, views_VBCHW: Tensor, table: I64, there: Tensor) -> tuple[Tensor, Tensor]:
        """Cut, blur, drop two channels, and give every patch the same mean and contrast."""
        patches_2B8 = there[0, :, 1:].reshape(-1, 2, 8).transpose(0, 1)
        corners_2BC2 = patches_2B8[:, :, None, :2].expand(-1, -1, 3, -1)
        pair_2BCHW = cut_tiles(views_VBCHW[0], corners_2BC2, self.patch)
        pair_2BCHW = coarsened(pair_2BCHW, patches_2B8[..., 3])
        pair_2BCHW = one_channel(pair_2BCHW, patches_2B8[..., 2], patches_2B8[..., 4:])
        return over_rms(pair_2BCHW, (-3, -2, -1)), there[..., 0]


def coarsened(patches: Tensor, sides: Tensor) -> Tensor:
    """Patches (..., C, p, p) shrunk to `sides` (...) px, antialiased, and enlarged again, bilinear.

    Two matrices per patch: sizes differ, and shapes may not.
    """
    full = patches.shape[-1]
    sides = sides[..., None, None].to(patches.dtype)
    fine = torch.arange(full, device=patches.device, dtype=patches.dtype)
    scale = full / sides
    # a row per coarse pixel; rows beyond `sides` are never read by `up`
    down = (1 - (fine - ((fine[:, None] + 0.5) * scale - 0.5)).abs() / scale).clamp(min=0)
    down = down / down.sum(-1, keepdim=True).clamp(min=1e-6)
    place = ((fine[:, None] + 0.5) / scale - 0.5).clamp(min=0).minimum(sides - 1)
    up = (1 - (fine - place).abs()).clamp(min=0)
    both = (up @ down)[..., None, :, :]
    return torch.where(sides[..., None] == full, patches, both @ patches @ both.mT)


def one_channel(patches: Tensor, kept: Tensor, key: Tensor) -> Tensor:
    """Keep channel `kept` (...) of patches (..., C, p, p), centred; the others become noise.

    The noise is even and a hundredth of the deviation of what is kept (section 3.1 of the paper;
    the code's +-0.5 of 255 levels is about that). `key` (..., W = 4): of Philox, a patch's own.
    """
    channels = torch.arange(patches.shape[-3], device=patches.device)[:, None, None]
    centred = patches - patches.mean((-2, -1), keepdim=True)
    is_kept = channels == kept[..., None, None, None]
    deviation = (centred * is_kept).square().sum(-3).mean((-2, -1)).sqrt()[..., None, None, None]
    noise = even_noise(key, patches.shape[-3:], patches.dtype) * (0.01 * math.sqrt(12) * deviation)
    return torch.where(is_kept, centred, noise)


def even_noise(key: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """(..., *shape) numbers even in [-0.5, 0.5), from Philox at key (..., W = 4)."""
    blocks = torch.arange(-(-shape.numel() // 4), device=key.device)
    k0, k1, c2, c3 = (key[..., i, None] for i in range(4))
    words = philox_torch((blocks, torch.zeros_like(blocks), c2, c3), (k0, k1))
    flat = torch.stack(words, -1).flatten(-2)[..., : shape.numel()]
    return ((flat >> 8).to(dtype) * 2.0**-24 - 0.5).view(*key.shape[:-1], *shape)
