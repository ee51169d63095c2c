"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), decided by key and done on the device.

Each sample has draws of its own, a function of (seed, epoch, uid): mixup or cutmix, the share that
it keeps and the place of the box. Its partner is the next sample of the batch in the order of keyed
64-bit words. So a batch is mixed in the same way whatever the order of its samples. Where ranks mix
their own shares of a global batch, kept shares and places are the same on any number of them, and
partners are those of the share.

timm's default (its `mode="batch"`, which MAE and BEiT use) draws once for a batch and pairs it with
its reverse; drawing for each sample is its `mode="elem"`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ..encoders.libraries import library

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """How strongly samples are mixed: alpha of Beta(alpha, alpha) of both kinds; 0: never.

    `switch`: the share of samples that get cutmix, where both are possible.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5


@dataclass(frozen=True, slots=True)
class Mixes:
    """What is done to each of B samples.

    partners (B,): the place of the other one. kept (B,): the share of the label that stays, lambda;
    for cutmix exactly the share of pixels. boxes (B, 4): top, bottom, left, right of what comes
    from the partner, in pixels, ends excluded. cut (B,) bool: cutmix; the others have an empty box.
    """

    partners: I64
    kept: F64
    boxes: I64
    cut: npt.NDArray[np.bool_]


def decide_mixes(
    mixing: Mixing, uids_B: I64, *, seed: int, epoch: int, height: int, width: int
) -> Mixes:
    """Decide how the samples of a batch of `epoch` are mixed.

    Raises:
        ExtraError: SciPy is not installed.
    """
    words = rng.words(6, seed=seed, epoch=epoch, stream="evaluate/mixing", ids=uids_B)
    order = np.lexsort((uids_B, words[:, 0] << np.uint64(32) | words[:, 1]))
    partners = np.empty(len(uids_B), dtype=np.int64)
    partners[order] = np.roll(order, -1)
    which_B, share_B, y_B, x_B = rng.fractions(words[:, 2:]).T
    cut = which_B < switch_of(mixing)
    alphas = np.where(cut, mixing.cutmix, mixing.mixup)
    kept = beta_quantile(alphas, share_B)
    boxes = cut_boxes(kept, y_B, x_B, height=height, width=width) * cut[:, None]
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return Mixes(partners, np.where(cut, 1 - area / (height * width), kept), boxes, cut)


def switch_of(mixing: Mixing) -> float:
    """The share of cutmix: all or nothing where one kind is off."""
    if not mixing.mixup:
        return 1.0
    return mixing.switch if mixing.cutmix else 0.0


def beta_quantile(alphas_B: F64, u_B: F64) -> F64:
    """Draw from Beta(alpha, alpha) by its inverse distribution function; `u_B` in [0, 1).

    Raises:
        ExtraError: SciPy is not installed.
    """
    return np.asarray(library("scipy.special").betaincinv(alphas_B, alphas_B, u_B))


def cut_boxes(kept_B: F64, y_B: F64, x_B: F64, *, height: int, width: int) -> I64:
    """Clip boxes (B, 4) of about 1 - kept of the area, around any pixel (timm's `rand_bbox`)."""
    sides = np.sqrt(1 - kept_B)
    spans = []
    for centre, length in ((y_B, height), (x_B, width)):
        middle = np.floor(centre * length)
        half = np.floor(sides * length) // 2
        spans += [np.clip(middle - half, 0, length), np.clip(middle + half, 0, length)]
    return np.stack(spans, axis=1).astype(np.int64)


def mix_images(images_BCHW: Tensor, mixes: Mixes) -> Tensor:
    """Mix images with their partners, all at once."""
    height, width = images_BCHW.shape[-2:]
    boxes_4B11 = torch.from_numpy(mixes.boxes).to(images_BCHW.device).T[:, :, None, None]
    rows = torch.arange(height, device=images_BCHW.device)[None, :, None]
    columns = torch.arange(width, device=images_BCHW.device)[None, None, :]
    top, bottom, left, right = boxes_4B11
    inside_BHW = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    shares = np.where(mixes.cut, 1.0, mixes.kept)
    share_B11 = torch.from_numpy(shares).to(images_BCHW)[:, None, None]
    own_B1HW = (share_B11 * ~inside_BHW)[:, None]
    partners = torch.from_numpy(mixes.partners).to(images_BCHW.device)
    mixed_BCHW: Tensor = images_BCHW * own_B1HW + images_BCHW[partners] * (1 - own_B1HW)
    return mixed_BCHW


def mix_labels(labels_B: Tensor, mixes: Mixes, *, classes: int, smoothing: float) -> Tensor:
    """Soft targets (B, K) that sum to 1: smoothed labels, mixed by the kept shares."""
    targets_BK = soft_targets(labels_B, classes=classes, smoothing=smoothing)
    kept_B1 = torch.from_numpy(mixes.kept).to(targets_BK)[:, None]
    partners = torch.from_numpy(mixes.partners).to(labels_B.device)
    return targets_BK * kept_B1 + targets_BK[partners] * (1 - kept_B1)


def soft_targets(labels_B: Tensor, *, classes: int, smoothing: float) -> Tensor:
    """One-hot labels, (B, K) float32, of which `smoothing` is spread over all classes alike."""
    hot_BK = F.one_hot(labels_B, classes).float()
    return hot_BK * (1 - smoothing) + smoothing / classes
