"""Square tiles cut out of views: what jigsaws and relative patches are made of. T tiles here."""

import torch
from torch import Tensor

from ....batch import ViewSpec


def one_view(view: str, spec: ViewSpec, side: int) -> None:
    """Raise a ValueError unless the group is one view of 3 channels and `side` x `side` px."""
    if (spec.count, spec.shape) != (1, (3, side, side)):
        raise ValueError(
            f"views.{view} holds {spec.count} of {spec.shown}; "
            f"make it 1 view of {side} x {side} px with 3 channels"
        )


def cut(views_BCHW: Tensor, corners_TBC2: Tensor, size: int) -> Tensor:
    """Tiles of `size` px: (T, B, C, size, size).

    `corners_TBC2`: int64 (y, x) of the upper left pixel, of each channel for itself.
    """
    steps = torch.arange(size, device=views_BCHW.device)
    rows = (corners_TBC2[..., 0, None] + steps)[..., :, None]
    columns = (corners_TBC2[..., 1, None] + steps)[..., None, :]
    samples, channels = (torch.arange(n, device=views_BCHW.device) for n in views_BCHW.shape[:2])
    return views_BCHW[samples[:, None, None, None], channels[:, None, None], rows, columns]


def over_rms(tiles: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by the root mean square over `dims`; what is flat stays near 0."""
    # 1e-3: far below the contrast of any picture, far above rounding
    return tiles / tiles.square().mean(dims, keepdim=True).sqrt().clamp(min=1e-3)


def standardise(tiles: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean 0 and standard deviation 1 over `dims`; what is flat becomes 0."""
    return over_rms(tiles - tiles.mean(dims, keepdim=True), dims)
