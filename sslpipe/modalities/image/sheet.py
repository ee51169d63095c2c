"""Pictures of a batch, and of stored samples: look before you train.

Rows are samples, columns are views; masked patches are greyed, class ids stand under the picture,
colours to be guessed are laid over it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from kornia.color import lab_to_rgb
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...batch import Batch, BatchSpec, MaskSpec
from ...errors import SampleError
from . import ops
from .decode import decode
from .draws import Policy

U8 = npt.NDArray[np.uint8]
MARGIN, LINE = 6, 14  # pixels
LEAST, MOST = 128, 224  # pixels of a tile's longer side
GREY = 128
TILE = 128  # pixels of a thumbnail's longer side
LETTERS = 20  # of a caption, so that it stays within its tile


@dataclass(frozen=True, slots=True)
class SheetColumn:
    """One view of all samples: its title, (B, h, w, 3) uint8 pictures, and a caption for each."""

    title: str
    pictures_BHWC: U8
    captions: list[str]


def sheet(
    batch: Batch, spec: BatchSpec, policies: dict[str, Policy], *, rows: int = 8
) -> Image.Image:
    """Draw the first `rows` samples of a batch as one RGB picture."""
    rows = min(rows, len(batch.keys))
    columns = list(columns_of(batch, spec, policies, rows))
    widths = [max(c.pictures_BHWC.shape[2], LEAST) + MARGIN for c in columns]
    height = max(c.pictures_BHWC.shape[1] for c in columns) + 2 * LINE
    canvas = Image.new("RGB", (sum(widths) + MARGIN, rows * height + LINE + MARGIN), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    x = MARGIN
    for column, width in zip(columns, widths, strict=True):
        pen.text((x, 2), column.title, fill="black", font=font)
        for row in range(rows):
            y = LINE + MARGIN + row * height
            canvas.paste(Image.fromarray(column.pictures_BHWC[row]), (x, y))
            caption = column.captions[row]
            pen.text((x, y + column.pictures_BHWC.shape[1] + 1), caption, fill="black", font=font)
        x += width
    for row in range(rows):
        y = MARGIN + (row + 1) * height
        pen.text((MARGIN, y), batch.keys[row], fill="dimgray", font=font)
    return canvas


def columns_of(
    batch: Batch, spec: BatchSpec, policies: dict[str, Policy], rows: int
) -> Iterator[SheetColumn]:
    """Views; masks, one per view on its view, others on the first; colours to be guessed.

    Targets of shape (2, h, w) are taken for (a, b), as colorization's are.
    """
    for group, views_VBCHW in batch.views.items():
        for v, view_BCHW in enumerate(views_VBCHW):
            pictures = picture(view_BCHW[:rows], policies[group])
            captions = [caption(batch, spec, group, v, b) for b in range(rows)]
            yield SheetColumn(f"{group} {v}", enlarged(pictures), captions)
    for name, masks_MBN in batch.masks.items():
        mask = spec.masks[name]
        views = batch.views[mask.view]
        for m, mask_BN in enumerate(masks_MBN):
            below = views[m if len(views) == mask.count else 0, :rows]
            hidden = grey_out(picture(below, policies[mask.view]), mask_BN[:rows], mask)
            counts = batch.hidden[name][m, :rows].tolist()
            texts = [f"{count} of {mask.patches} hidden" for count in counts]
            yield SheetColumn(f"mask {name} {m}", enlarged(hidden), texts)
    for name, target in spec.targets.items():
        if target.classes is None and len(target.shape) == 3 and target.shape[0] == 2:
            places = " x ".join(map(str, target.shape[1:]))
            for v, ab_B2HW in enumerate(batch.targets[name]):
                pictures = coloured(batch.views[target.view][v, :rows], ab_B2HW[:rows])
                yield SheetColumn(
                    f"target {name} {v}", enlarged(pictures), [f"{places} places"] * rows
                )


def picture(view_BCHW: Tensor, policy: Policy) -> U8:
    """(B, H, W, 3) uint8, with Normalize undone."""
    view = view_BCHW.detach().float().cpu()
    for step in policy.steps:
        if isinstance(step.op, ops.Normalize):
            mean, std = (torch.tensor(v)[:, None, None] for v in (step.op.mean, step.op.std))
            view = view * std + mean
    return in_levels(stretched(view))


def in_levels(view_BCHW: Tensor) -> U8:
    """Grey or colour in [0, 1] as (B, H, W, 3) uint8."""
    levels = (view_BCHW * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def coloured(lightness_BCHW: Tensor, ab_B2HW: Tensor) -> U8:
    """Colours of places under the lightness (L / 100) of all pixels; (B, H, W, 3) uint8."""
    lightness = 100 * lightness_BCHW[:, :1].detach().float().cpu()
    ab = F.interpolate(ab_B2HW.detach().float().cpu(), size=tuple(lightness.shape[-2:]))
    return in_levels(lab_to_rgb(torch.cat([lightness, ab], dim=1)))


def stretched(view_BCHW: Tensor) -> Tensor:
    """Pictures that a task has moved far out of [0, 1], each by its own range; others as are."""
    low, high = view_BCHW.amin((1, 2, 3), keepdim=True), view_BCHW.amax((1, 2, 3), keepdim=True)
    # bicubic views overshoot a little, which is to be cut off and not shown
    far = (low < -0.1) | (high > 1.1)
    return torch.where(far, (view_BCHW - low) / (high - low).clamp(min=1e-6), view_BCHW)


def grey_out(pictures_BHWC: U8, mask_BN: Tensor, mask: MaskSpec) -> U8:
    """The pictures with their hidden patches greyed."""
    grid = mask_BN.cpu().numpy().reshape(-1, *mask.grid)
    pixels = grid.repeat(mask.patch[0], 1).repeat(mask.patch[1], 2)
    return np.where(pixels[..., None], np.uint8(GREY), pictures_BHWC)


def caption(batch: Batch, spec: BatchSpec, group: str, view: int, sample: int) -> str:
    """The targets of one view."""
    found = [
        f"{name} {int(batch.targets[name][view, sample])}"
        for name, target in spec.targets.items()
        if target.view == group and target.classes and not target.shape and view < target.count
    ]
    return ", ".join(found)


def enlarged(pictures_BHWC: U8) -> U8:
    """Small pictures by whole factors, so that pixels stay pixels; large ones shrunk to fit."""
    longest = max(pictures_BHWC.shape[1:3])
    if longest > MOST:
        step = -(-longest // MOST)
        return pictures_BHWC[:, ::step, ::step]
    factor = max(1, LEAST // longest)
    return pictures_BHWC.repeat(factor, 1).repeat(factor, 2)


def thumbnails(items: Sequence[tuple[bytes, Sequence[str]]], *, columns: int = 8) -> Image.Image:
    """Draw encoded images above their captions, in rows; what does not decode is a red tile."""
    columns = min(columns, len(items))
    lines = max(len(captions) for _, captions in items)
    width, height = TILE + MARGIN, TILE + lines * LINE + MARGIN
    rows = -(-len(items) // columns)
    canvas = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for place, (data, captions) in enumerate(items):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * width, MARGIN + row * height
        canvas.paste(tile(data), (x, y))
        for line, text in enumerate(captions):
            pen.text((x, y + TILE + line * LINE), shortened(text), fill="black", font=font)
    return canvas


def tile(data: bytes) -> Image.Image:
    """A square with the picture in it."""
    square = Image.new("RGB", (TILE, TILE), "whitesmoke")
    try:
        picture = Image.fromarray(decode(data, size=TILE))
    except SampleError:
        return Image.new("RGB", (TILE, TILE), "red")
    picture.thumbnail((TILE, TILE))
    square.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return square


def shortened(text: str) -> str:
    """The end of a long caption: keys differ there."""
    return text if len(text) <= LETTERS else "..." + text[3 - LETTERS :]
