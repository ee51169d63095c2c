"""Pictures of a batch, and of stored samples: look before you train.

Each sample has a band of its own: the decoded picture with its key on the left, then its views,
masks and targets, with captions under the pictures that they are about. Masked patches are greyed,
class ids stand under the view or, if they are about all views, above them; colours to be guessed
are laid over the lightness.
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

from ...batch import Batch, BatchSpec, MaskSpec, TargetSpec
from ...errors import SampleError
from ...stream.source import Column
from . import ops
from .decode import decode
from .draws import Policy
from .sheet_layout import Cells, arrange

U8 = npt.NDArray[np.uint8]
MARGIN, LINE = 6, 14  # pixels
LEAST, MOST = 128, 224  # pixels of a tile's longer side
GREY = 128
TILE = 128  # pixels of a thumbnail's longer side
LETTERS = 20  # of a caption, so that it stays within its tile
FONT = ImageFont.load_default(11)


@dataclass(frozen=True, slots=True)
class SheetColumn:
    """One picture of all samples: (B, h, w, 3) uint8, or B pictures of any sizes; and captions."""

    pictures_BHWC: U8 | Sequence[U8]
    captions: list[str]


@dataclass(frozen=True, slots=True)
class SheetBlock:
    """Columns that belong together, such as the views of a group; a title for each sample."""

    titles: list[str]
    columns: list[SheetColumn]

    @property
    def cells(self) -> Cells:
        """How much room each picture takes, with its caption."""
        pictures = [picture for column in self.columns for picture in column.pictures_BHWC]
        texts = [text for column in self.columns for text in column.captions]
        lines = max(text.count("\n") + 1 if text else 0 for text in texts)
        width = max(*(picture.shape[1] for picture in pictures), *map(text_width, texts))
        if len(self.columns) == 1:  # the title must not run into the next block
            width = max(width, *map(text_width, self.titles))
        height = max(picture.shape[0] for picture in pictures)
        return Cells(len(self.columns), width + MARGIN, height + lines * LINE + MARGIN, LINE + 2)


def sheet(
    batch: Batch, spec: BatchSpec, policies: dict[str, Policy], stored: Column, *, rows: int = 8
) -> Image.Image:
    """Draw the first `rows` samples of a batch as one RGB picture, the stored ones beside them."""
    rows = min(rows, len(batch.keys))
    blocks = [originals(batch, stored, rows), *tile_blocks(batch, spec, policies, rows)]
    layout = arrange([block.cells for block in blocks])
    band = layout.height + 2 * MARGIN
    canvas = Image.new("RGB", (layout.width + 2 * MARGIN, rows * band), "white")
    pen = ImageDraw.Draw(canvas)
    for row in range(rows):
        if row:
            pen.line([(0, row * band), (canvas.width, row * band)], fill="silver")
        for block, (x, y), corners in zip(blocks, layout.heads, layout.cells, strict=True):
            place = MARGIN + x, row * band + MARGIN + y
            pen.text(place, block.titles[row], fill="dimgray", font=FONT)
            for column, (left, top) in zip(block.columns, corners, strict=True):
                place = MARGIN + left, row * band + MARGIN + top
                draw_tile(canvas, place, column.pictures_BHWC[row], column.captions[row])
    return canvas


def draw_tile(canvas: Image.Image, place: tuple[int, int], picture: U8, caption: str) -> None:
    """A picture, and right below it what is said of it."""
    canvas.paste(Image.fromarray(picture), place)
    pen, (x, y) = ImageDraw.Draw(canvas), place
    for number, text in enumerate(caption.splitlines()):
        at = x, y + picture.shape[0] + 1 + number * LINE
        pen.text(at, text, fill="black", font=FONT)


def text_width(text: str) -> int:
    """Pixels that the longest line of a caption takes."""
    return max((int(FONT.getlength(line)) + 1 for line in text.splitlines()), default=0)


def originals(batch: Batch, stored: Column, rows: int) -> SheetBlock:
    """The pictures as they were decoded, nothing done to them, with keys and sizes in pixels.

    Views that need no more may have had a JPEG decoded at a fraction of its sides: both are said.
    """
    arrays = [array.cpu().numpy() for array in stored.arrays[:rows]]
    pictures = [shown(array) for array in arrays]
    whole = map(by_sides, stored.extents[:rows, :2].tolist())
    made = [by_sides(array.shape[:2]) for array in arrays]
    sides = [m if m == w else f"{m} of {w}" for m, w in zip(made, whole, strict=True)]
    captions = [f"{shortened(k)}\n{size}" for k, size in zip(batch.keys, sides, strict=False)]
    return SheetBlock(["decoded"] * rows, [SheetColumn(pictures, captions)])


def by_sides(sides: Sequence[int]) -> str:
    """Height and width as people write them, width first."""
    return f"{sides[1]} x {sides[0]}"


def shown(canvas_HWC: U8) -> U8:
    """A decoded picture in the size of a tile: by whole factors if it is small, else smoothly."""
    if max(canvas_HWC.shape[:2]) <= MOST:
        small: U8 = enlarged(canvas_HWC[None])[0]
        return small
    picture = Image.fromarray(canvas_HWC)
    picture.thumbnail((MOST, MOST), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def tile_blocks(
    batch: Batch, spec: BatchSpec, policies: dict[str, Policy], rows: int
) -> Iterator[SheetBlock]:
    """The views of each group; masks, one per view on its view, others on the first; colours."""
    for group, policy in policies.items():
        views_VBCHW = batch.views[group]
        columns = [
            SheetColumn(
                enlarged(picture(view_BCHW[:rows], policy)),
                [caption(batch, spec, group, v, b) for b in range(rows)],
            )
            for v, view_BCHW in enumerate(views_VBCHW)
        ]
        title = f"{group}: {len(columns)} x {' x '.join(map(str, views_VBCHW.shape[-2:]))}"
        titles = [f"{title}{of_all_views(batch, spec, group, b)}" for b in range(rows)]
        yield SheetBlock(titles, columns)
    for name, mask in spec.masks.items():
        if mask.view in policies:
            columns = masked(batch, mask, batch.masks[name], policies[mask.view], rows)
            title = f"mask {name} of {mask.view}: {mask.patches} patches"
            yield SheetBlock([title] * rows, columns)
    yield from colours(batch, spec, policies, rows)


def masked(
    batch: Batch, mask: MaskSpec, masks_MBN: Tensor, policy: Policy, rows: int
) -> list[SheetColumn]:
    """Views with their hidden patches greyed: mask m on view m if each view has one."""
    views, columns = batch.views[mask.view], []
    for m, mask_BN in enumerate(masks_MBN[:, :rows]):
        below = views[m if len(views) == mask.count else 0, :rows]
        hidden = grey_out(picture(below, policy), mask_BN, mask)
        texts = [f"{count} hidden" for count in mask_BN.sum(dim=1).tolist()]
        columns.append(SheetColumn(enlarged(hidden), texts))
    return columns


def colours(
    batch: Batch, spec: BatchSpec, policies: dict[str, Policy], rows: int
) -> Iterator[SheetBlock]:
    """Targets of shape (2, h, w), taken for (a, b) as colorization's are, over their views."""
    for name, target in spec.targets.items():
        shape = target.shape
        if target.view in policies and target.classes is None and len(shape) == 3 and shape[0] == 2:
            views = batch.views[target.view]
            columns = [
                SheetColumn(enlarged(coloured(view[:rows], ab_B2HW[:rows])), [""] * rows)
                for view, ab_B2HW in zip(views, batch.targets[name], strict=False)
            ]
            places = " x ".join(map(str, shape[1:]))
            yield SheetBlock([f"target {name}, {places} places"] * rows, columns)


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
    """The number of a view, and the classes that it is to be given."""
    found = [
        f"{name} {int(batch.targets[name][view, sample])}"
        for name, target in spec.targets.items()
        if target.view == group and is_class(target) and target.count > 1 and view < target.count
    ]
    return ", ".join([f"view {view}", *found])


def of_all_views(batch: Batch, spec: BatchSpec, group: str, sample: int) -> str:
    """The classes that all views of a group are to be given together, as jigsaw's order."""
    found = [
        f", {name} {int(batch.targets[name][0, sample])}"
        for name, target in spec.targets.items()
        if target.view == group and is_class(target) and target.count == 1
    ]
    return "".join(found)


def is_class(target: TargetSpec) -> bool:
    """Tell whether a target is one of some classes."""
    return target.classes is not None and not target.shape


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
    pen = ImageDraw.Draw(canvas)
    for place, (data, captions) in enumerate(items):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * width, MARGIN + row * height
        canvas.paste(tile(data), (x, y))
        for line, text in enumerate(captions):
            pen.text((x, y + TILE + line * LINE), shortened(text), fill="black", font=FONT)
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
