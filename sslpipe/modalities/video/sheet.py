"""Pictures of clips: film strips on paper, and moving ones beside it.

Each sample has a band of its own: a strip of what was decoded, then one of each of its clips, with
the numbers of the frames below, then one of each mask, hidden patches greyed. A strip shows eight
frames of a clip at most, evenly chosen.
"""

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from ...batch import Batch, BatchSpec, MaskSpec
from ...device.buffers import Buffers
from ...errors import SampleError
from ...stream.source import Column
from ..image.sheet import FONT, GREY, LINE, MARGIN, picture, shortened
from .container import opened
from .decider import ClipPolicy, VideoDecider
from .decode import decode_frames

U8 = npt.NDArray[np.uint8]
SHOWN = 8  # frames of a strip
HEIGHT, WIDTH = 96, 144  # pixels that a frame takes at most
HEAD = 150  # pixels to the left of strips, for words
PERIOD = 125  # milliseconds that a frame of a moving picture stands


class FilmStrip(NamedTuple):
    """Frames side by side: (T, H, W, 3) uint8, what is said of all, and of each."""

    words: str
    frames_THWC: U8
    captions: Sequence[str]


def sheet(
    batch: Batch, spec: BatchSpec, decider: VideoDecider, stored: Column, *, rows: int = 8
) -> Image.Image:
    """Draw the first `rows` samples of a batch as one RGB picture."""
    bands = [
        [decoded_strip(batch, stored, row), *strips_of(batch, spec, decider, row)]
        for row in range(min(rows, len(batch.keys)))
    ]
    return on_paper(bands)


def decoded_strip(batch: Batch, stored: Column, row: int) -> FilmStrip:
    """The frames that were decoded of a sample, nothing done to them."""
    frames = stored.arrays[row].cpu().numpy()
    length, height, width, rate = stored.extents[row, :4].tolist()
    told = f"{rate / 1000:g} frames/s" if rate else "rate not known"
    words = (
        f"{shortened(batch.keys[row])}\n{width} x {height} px\n{told}\n{len(frames)} of {length}"
    )
    return FilmStrip(f"{words} frames", frames, [""] * len(frames))


def strips_of(
    batch: Batch, spec: BatchSpec, decider: VideoDecider, row: int
) -> Iterator[FilmStrip]:
    """The clips of a sample, and its masks: one per view on its view, others on the first."""
    for name, group in decider.policies.items():
        numbers_VT = group.frames_of(batch.params[name].numpy())[:, row]
        for view, numbers_T in enumerate(numbers_VT):
            frames = frames_of(batch.views[name][view, row], group)
            captions = [f"frame {number}" for number in numbers_T]
            yield FilmStrip(f"{name}, view {view}\n{group.spec.shown}", frames, captions)
    for name, mask in spec.masks.items():
        if mask.view in decider.policies:
            yield from masked_strips(batch, name, mask, decider.policies[mask.view], row)


def masked_strips(
    batch: Batch, name: str, mask: MaskSpec, group: ClipPolicy, row: int
) -> Iterator[FilmStrip]:
    """Clips with their hidden patches greyed."""
    views = batch.views[mask.view]
    for number in range(mask.count):
        view = views[number if len(views) == mask.count else 0, row]
        frames = greyed(frames_of(view, group), batch.masks[name][number, row], mask)
        hidden = int(batch.hidden[name][number, row])
        words = f"mask {name} {number}\n{hidden} of {mask.patches}\npatches hidden"
        yield FilmStrip(words, frames, [""] * len(frames))


def frames_of(view_CTHW: Tensor, group: ClipPolicy) -> U8:
    """A clip as (T, H, W, 3) uint8, Normalize undone."""
    return picture(view_CTHW.transpose(0, 1), group.images)


def greyed(frames_THWC: U8, mask_N: Tensor, mask: MaskSpec) -> U8:
    """A clip with its hidden patches in grey."""
    grid = mask_N.cpu().numpy().reshape(mask.grid)
    for axis, size in enumerate(mask.patch):
        grid = grid.repeat(size, axis)
    return np.where(grid[..., None], np.uint8(GREY), frames_THWC)


def thinned(strip: FilmStrip) -> FilmStrip:
    """A strip with no more frames than paper has room for."""
    whole = len(strip.captions)
    places = np.linspace(0, whole - 1, min(whole, SHOWN)).astype(np.int64)
    captions = [strip.captions[place] for place in places.tolist()]
    return FilmStrip(strip.words, strip.frames_THWC[places], captions)


def on_paper(bands: Sequence[Sequence[FilmStrip]]) -> Image.Image:
    """Lay strips below each other, with a line between bands."""
    bands = [[thinned(strip) for strip in band] for band in bands]
    laid = [[(strip, fitted_size(strip.frames_THWC)) for strip in band] for band in bands]
    step = max(width for band in laid for _, (width, _) in band) + MARGIN
    row_height = max(height for band in laid for _, (_, height) in band) + LINE + MARGIN
    row_height = max(row_height, 4 * LINE + MARGIN)
    rows = sum(len(band) for band in bands)
    most = max(len(strip.captions) for band in bands for strip in band)
    canvas = Image.new("RGB", (HEAD + most * step + MARGIN, rows * row_height + MARGIN), "white")
    pen, top = ImageDraw.Draw(canvas), MARGIN
    for band in laid:
        if top > MARGIN:
            pen.line([(0, top - MARGIN // 2), (canvas.width, top - MARGIN // 2)], fill="silver")
        for strip, size in band:
            draw_strip(canvas, strip, size, top, step)
            top += row_height
    return canvas


def draw_strip(
    canvas: Image.Image, strip: FilmStrip, size: tuple[int, int], top: int, step: int
) -> None:
    """One strip: its words to the left, its frames with their captions."""
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(strip.words.splitlines()):
        colour = "dimgray" if number else "black"
        pen.text((MARGIN, top + number * LINE), line, fill=colour, font=FONT)
    for place, (frame, caption) in enumerate(zip(strip.frames_THWC, strip.captions, strict=True)):
        at = HEAD + place * step, top
        canvas.paste(resized(frame, size), at)
        pen.text((at[0], top + size[1] + 1), caption, fill="dimgray", font=FONT)


def fitted_size(frames_THWC: U8) -> tuple[int, int]:
    """Width and height of frames on paper: as large as fits, small ones by whole factors."""
    height, width = frames_THWC.shape[1:3]
    scale = min(HEIGHT / height, WIDTH / width)
    scale = float(int(scale)) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized(frame_HWC: U8, size: tuple[int, int]) -> Image.Image:
    """A frame in another size; enlarged pixels stay pixels."""
    grown = size[0] >= frame_HWC.shape[1]
    way = Image.Resampling.NEAREST if grown else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(frame_HWC)).resize(size, way)


def moving(batch: Batch, spec: BatchSpec, decider: VideoDecider, *, rows: int) -> bytes:
    """Make an animated WebP: a row for each sample, its clips and masks side by side."""
    bands = [
        [strip.frames_THWC for strip in strips_of(batch, spec, decider, row)]
        for row in range(min(rows, len(batch.keys)))
    ]
    times = max(len(frames) for band in bands for frames in band)
    pictures = [at_time(bands, time) for time in range(times)]
    out = io.BytesIO()
    pictures[0].save(
        out, "WEBP", save_all=True, append_images=pictures[1:], duration=PERIOD, loop=0, quality=90
    )
    return out.getvalue()


def at_time(bands: Sequence[Sequence[U8]], time: int) -> Image.Image:
    """All clips at one time, each over again when it ends."""
    sizes = [fitted_size(frames) for band in bands for frames in band]
    wide, tall = (max(size[axis] for size in sizes) + MARGIN for axis in (0, 1))
    across = max(len(band) for band in bands)
    canvas = Image.new("RGB", (across * wide + MARGIN, len(bands) * tall + MARGIN), "white")
    for y, band in enumerate(bands):
        for x, frames in enumerate(band):
            tile = resized(frames[time % len(frames)], fitted_size(frames))
            canvas.paste(tile, (MARGIN + x * wide, MARGIN + y * tall))
    return canvas


def thumbnails(items: Sequence[tuple[bytes, Sequence[str]]]) -> Image.Image:
    """Draw stored videos as strips of three frames, with their captions beside them."""
    return on_paper([[thumbnail(data, captions)] for data, captions in items])


def thumbnail(data: bytes, captions: Sequence[str]) -> FilmStrip:
    """The first, middle and last frame of a video; what does not decode is a red tile."""
    words = "\n".join(shortened(caption) for caption in captions)
    try:
        with opened(data) as film:
            numbers = sorted({0, film.frames // 2, film.frames - 1})
            frames = decode_frames(film, numbers, HEIGHT, Buffers())
    except SampleError:
        red = np.zeros((1, HEIGHT, HEIGHT, 3), np.uint8)
        red[..., 0] = 255
        return FilmStrip(words, red, ["does not decode"])
    return FilmStrip(words, frames, [f"frame {number}" for number in numbers])
