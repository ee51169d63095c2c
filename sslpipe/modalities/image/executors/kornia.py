"""The reference executor: genuine Kornia operations fed with our parameters, on CPU or CUDA.

Only rows whose gate is on are computed; the gates are known on the host, so no device is read.
Kornia's samplers, which follow a global generator, are never called.

Letters: R = V * B rows, each one view of one sample.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import kornia.color
import kornia.enhance
import kornia.filters
import kornia.geometry.bbox
import kornia.geometry.transform
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...returned import check_image
from .. import ops
from ..draws import Crop, Policy
from ..ops import Op

F32 = npt.NDArray[np.float32]


def execute(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: F32,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make the views of one group.

    canvases: B of (H, W, 3) uint8, RGB, each of its own size.
    Returns: (V, B, 3, h, w) on `device`, computed in float32 and rounded once, to `dtype`; in
    [0, 1] before Normalize.
    """
    views, batch, _ = table_VBP.shape
    table_RP = table_VBP.reshape(views * batch, -1)
    on_device = [canvas.to(device, non_blocking=True) for canvas in canvases]
    boxes_R4 = table_RP[:, policy.steps[0].columns]
    crops = [crop(on_device[r % batch], boxes_R4[r], policy.crop) for r in range(len(table_RP))]
    images_RCHW = torch.stack(crops)
    for step in policy.steps[1:]:
        apply = APPLY.get(type(step.op), own)
        images_RCHW = apply(step.op, images_RCHW, table_RP[:, step.columns])
    return images_RCHW.reshape(views, batch, *images_RCHW.shape[1:]).to(dtype)


def crop(canvas: Tensor, box: F32, op: Crop) -> Tensor:
    """Cut (x, y, w, h) out of an (H, W, 3) uint8 canvas, zero outside, and resize: (3, h, w)."""
    x, y, w, h = (int(side) for side in box)
    inside = canvas[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
    image = inside.permute(2, 0, 1)[None].float() / 255
    left, top = min(max(-x, 0), w), min(max(-y, 0), h)  # a padded box may miss the canvas
    pads = (left, w - left - inside.shape[1], top, h - top - inside.shape[0])
    if any(pads):
        image = F.pad(image, pads)
    if isinstance(op, ops.RandomCrop) or (h, w) == tuple(op.size):
        return image[0]
    resized = F.interpolate(image, tuple(op.size), mode=op.resample, antialias=op.antialias)
    return resized[0].clamp_(0, 1)  # bicubic overshoots; papers' PIL pipelines clip


Apply = Callable[[Op, Tensor, F32], Tensor]


def gated(rows: F32, images: Tensor) -> Tensor:
    """Indices of the rows whose gate (column 0) is on."""
    return torch.from_numpy(np.flatnonzero(rows[:, 0])).to(images.device, non_blocking=True)


def column(rows: F32, index: int, images: Tensor) -> Tensor:
    """One column of the gated rows, on the images' device."""
    values = np.ascontiguousarray(rows[rows[:, 0] > 0, index])
    return torch.from_numpy(values).to(images.device, non_blocking=True)


def hflip(op: Op, images: Tensor, rows: F32) -> Tensor:
    on = gated(rows, images)
    return images.index_copy(0, on, kornia.geometry.transform.hflip(images[on]))


def vflip(op: Op, images: Tensor, rows: F32) -> Tensor:
    on = gated(rows, images)
    return images.index_copy(0, on, kornia.geometry.transform.vflip(images[on]))


def grayscale(op: Op, images: Tensor, rows: F32) -> Tensor:
    on = gated(rows, images)
    grey = kornia.color.rgb_to_grayscale(images[on]).expand(-1, 3, -1, -1)
    return images.index_copy(0, on, grey)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Kornia's functional takes radians."""
    return kornia.enhance.adjust_hue(images, turns * (2 * torch.pi))  # type: ignore[no-any-return]


FACTORS = (
    kornia.enhance.adjust_brightness_accumulative,
    kornia.enhance.adjust_contrast_with_mean_subtraction,
    kornia.enhance.adjust_saturation_with_gray_subtraction,
    hue,
)


def color_jitter(op: Op, images: Tensor, rows: F32) -> Tensor:
    """At each of the four places, every factor is applied to the rows that have it there."""
    on = rows[:, 0] > 0
    for place in range(4):
        for factor, adjust in enumerate(FACTORS):
            chosen = np.flatnonzero(on & (rows[:, 5 + place] == factor))
            values = rows[chosen, 1 + factor]
            if not len(chosen) or np.all(values == (0 if adjust is hue else 1)):
                continue
            index = torch.from_numpy(chosen).to(images.device, non_blocking=True)
            amount = torch.from_numpy(values).to(images.device, non_blocking=True)
            images = images.index_copy(0, index, adjust(images[index], amount))
    return images


def gaussian_blur(op: Op, images: Tensor, rows: F32) -> Tensor:
    assert isinstance(op, ops.RandomGaussianBlur)
    on = gated(rows, images)
    if not len(on):
        return images  # Kornia's filter rejects an empty batch
    # the kernels are made on the host: gaussian_blur2d reads sigma back from the device to check it
    sigma = torch.from_numpy(np.ascontiguousarray(rows[rows[:, 0] > 0, 1:2]))
    y, x = (
        kornia.filters.get_gaussian_kernel1d(size, sigma).to(images.device, non_blocking=True)
        for size in op.kernel_size
    )
    blurred = kornia.filters.filter2d_separable(images[on], x, y, "reflect")
    return images.index_copy(0, on, blurred)


def rotation(op: Op, images: Tensor, rows: F32) -> Tensor:
    assert isinstance(op, ops.RandomRotation)
    on = gated(rows, images)
    if not len(on):
        return images  # an empty batch has no grid
    turned = kornia.geometry.transform.rotate(
        images[on], column(rows, 1, images), mode=op.resample, align_corners=True
    )
    return images.index_copy(0, on, turned)


def rotation_90(op: Op, images: Tensor, rows: F32) -> Tensor:
    """Kornia warps; pixels are moved instead."""
    for turns in range(1, 4):
        chosen = np.flatnonzero((rows[:, 0] > 0) & (rows[:, 1] % 4 == turns))
        index = torch.from_numpy(chosen).to(images.device, non_blocking=True)
        images = images.index_copy(0, index, torch.rot90(images[index], turns, (-2, -1)))
    return images


def erase(op: Op, images: Tensor, rows: F32) -> Tensor:
    assert isinstance(op, ops.RandomErasing)
    chosen = np.flatnonzero((rows[:, 0] > 0) & (rows[:, 3] > 0))  # a box without width is none
    index = torch.from_numpy(chosen).to(images.device, non_blocking=True)
    x, y, w, h = torch.from_numpy(rows[chosen, 1:].T.copy()).to(images.device, non_blocking=True)
    height, width = images.shape[-2:]
    corners = kornia.geometry.bbox.bbox_generator(x, y, w, h)
    mask = kornia.geometry.bbox.bbox_to_mask(corners, width, height)[:, None] > 0
    return images.index_copy(0, index, images[index].masked_fill(mask, op.value))


def tone(adjust: Callable[[Tensor], Tensor]) -> Apply:
    """A fixed adjustment of values in [0, 1], as an op."""

    def apply(op: Op, images: Tensor, rows: F32) -> Tensor:
        on = gated(rows, images)
        return images.index_copy(0, on, adjust(images[on].clamp(0, 1))) if len(on) else images

    return apply


def posterize(op: Op, images: Tensor, rows: F32) -> Tensor:
    on = gated(rows, images)
    bits = column(rows, 1, images).to(torch.int32)
    return images.index_copy(0, on, kornia.enhance.posterize(images[on].clamp(0, 1), bits))


def sharpen(op: Op, images: Tensor, rows: F32) -> Tensor:
    on = gated(rows, images)
    if not len(on):
        return images
    sharp = kornia.enhance.sharpness(images[on].clamp(0, 1), column(rows, 1, images))
    return images.index_copy(0, on, sharp)


def solarize(op: Op, images: Tensor, rows: F32) -> Tensor:
    on = gated(rows, images)
    return images.index_copy(0, on, kornia.enhance.solarize(images[on], column(rows, 1, images)))


def normalize(op: Op, images: Tensor, rows: F32) -> Tensor:
    assert isinstance(op, ops.Normalize)
    mean, std = (images.new_tensor(values) for values in (op.mean, op.std))
    return kornia.enhance.normalize(images, mean, std)  # type: ignore[no-any-return]


def own(op: Op, images: Tensor, rows: F32) -> Tensor:
    """A foreign Kornia class, or a user's own op."""
    assert isinstance(op, ops.OwnPixels)
    made = op.apply(images, rows)
    check_image(op, made, images)
    return made


APPLY: Mapping[type, Apply] = MappingProxyType({
    ops.RandomHorizontalFlip: hflip,
    ops.RandomVerticalFlip: vflip,
    ops.RandomGrayscale: grayscale,
    ops.ColorJitter: color_jitter,
    ops.RandomGaussianBlur: gaussian_blur,
    ops.RandomSolarize: solarize,
    ops.RandomRotation: rotation,
    ops.RandomRotation90: rotation_90,
    ops.RandomErasing: erase,
    ops.RandomInvert: tone(kornia.enhance.invert),
    ops.RandomEqualize: tone(kornia.enhance.equalize),
    ops.RandomAutoContrast: tone(kornia.enhance.normalize_min_max),
    ops.RandomPosterize: posterize,
    ops.RandomSharpness: sharpen,
    ops.Normalize: normalize,
})  # fmt: skip
