"""Recordings as pictures: waveforms and spectrograms, what masks hide tinted, padding marked.

Letters as in batch.py; W pixels across a tile.
"""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ...batch import Batch, MaskSpec
from .clips import quantised
from .decider import AudioDecider
from .maker import stacked
from .policy import SoundPolicy
from .recordings import opened, read_sound, soundfile_library

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
WIDTH, WAVE, LINE, GAP = 480, 80, 18, 6  # pixels: a tile, a waveform, a line of text, between tiles
SPECTROGRAM = 128  # at least so high
INK, TINT, EDGE = (30, 58, 138), (220, 38, 38), (34, 160, 84)  # sound, what is hidden, its end
HEAT = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])
LONGEST = 20  # seconds of a thumbnail
SILENCE = 0.25  # seconds between the views of a WAV file
WINDOW = 256  # samples of a spectrogram of a whole recording


def sheet(batch: Batch, decider: AudioDecider, *, rows: int) -> Image.Image:
    """A band for each of the first samples: its key, then a tile for each view of each group."""
    bands = [(key, list(tiles(batch, decider, row))) for row, key in enumerate(batch.keys[:rows])]
    across = max(len(found) for _, found in bands)
    heights = [LINE + GAP + max(tile.height for tile in found) for _, found in bands]
    picture = Image.new("RGB", (across * (WIDTH + GAP) + GAP, sum(heights) + GAP), "white")
    pen, top = ImageDraw.Draw(picture), GAP
    for (key, found), height in zip(bands, heights, strict=True):
        pen.text((GAP, top), key, "black", ImageFont.load_default(13))
        for column, tile in enumerate(found):
            picture.paste(tile, (GAP + column * (WIDTH + GAP), top + LINE))
        top += height
    return picture


def tiles(batch: Batch, decider: AudioDecider, row: int) -> Iterator[Image.Image]:
    """Yield a picture of each view of one sample, group by group, with its masks."""
    for group, policy in decider.policies.items():
        masks = [name for name, spec in decider.masks.items() if spec.view == group]
        for view in range(policy.count):
            sound = batch.views[group][view, row].float().cpu().numpy()
            pixels = spectrogram(sound[0]) if sound.ndim == 3 else waveform(sound)
            for name in masks:
                hidden_MN = batch.masks[name][:, row].cpu().numpy()
                tint(pixels, hidden_MN[min(view, len(hidden_MN) - 1)], decider.masks[name], sound)
            real = int(batch.lengths[group][view, row])
            yield framed(pixels, real / sound.shape[-1])


def waveform(sound_T: F32) -> U8:
    """The least and the greatest sample of each column, (WAVE, WIDTH, 3)."""
    edges = np.linspace(0, len(sound_T), WIDTH, endpoint=False).astype(np.int64)
    scale = max(float(np.abs(sound_T).max()), 1e-4)
    low_W, high_W = (f.reduceat(sound_T, edges) / scale for f in (np.minimum, np.maximum))
    y_H = np.linspace(1, -1, WAVE)[:, None]
    inside = (y_H >= low_W - 2 / WAVE) & (y_H <= high_W + 2 / WAVE)
    return np.where(inside[..., None], np.array(INK), 255).astype(np.uint8)


def spectrogram(sound_FT: F32) -> U8:
    """Colours from the 2nd to the 99th percentile, low frequencies below, (H, WIDTH, 3)."""
    low, high = np.percentile(sound_FT, [2, 99])
    heat_FT = np.clip((sound_FT - low) / max(high - low, 1e-6), 0, 1)[::-1]
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(heat_FT, places, HEAT[:, c]) for c in range(3)], axis=-1)
    height = max(SPECTROGRAM, len(sound_FT))
    image = Image.fromarray(colours.astype(np.uint8)).resize((WIDTH, height), Image.Resampling.BOX)
    return np.array(image)


def tint(pixels: U8, hidden_N: Bools, spec: MaskSpec, sound: F32) -> None:
    """Redden what a mask hides, in place: patches of a spectrogram, frames of a waveform."""
    height, width = pixels.shape[:2]
    if len(spec.grid) == 2:
        cells = np.flip(hidden_N.reshape(spec.grid), 0)  # low frequencies below
        sides = (np.arange(n) * c // n for n, c in zip((height, width), cells.shape, strict=True))
        hidden_HW = cells[np.ix_(*sides)]
    else:
        step = np.arange(width) * sound.shape[-1] // width // spec.patch[0]
        hidden_HW = np.tile(hidden_N[np.minimum(step, len(hidden_N) - 1)], (height, 1))
    pixels[hidden_HW] = 0.55 * pixels[hidden_HW] + 0.45 * np.array(TINT)


def framed(pixels: U8, real: float) -> Image.Image:
    """A tile; a green line where padding begins."""
    image = Image.fromarray(pixels)
    if real < 1:
        x = int(real * image.width)
        ImageDraw.Draw(image).line([(x, 0), (x, image.height)], fill=EDGE, width=2)
    return image


def heard(
    batch: Batch, decider: AudioDecider, arrays: Sequence[object], *, rows: int
) -> dict[str, bytes]:
    """`GROUP.wav` for each group: the views of the first samples, with silence between them.

    Of groups of spectrograms it is the crops that they were made of.
    """
    crops_BN, at = stacked(arrays)[:rows].cpu().numpy(), 0  # type: ignore[arg-type]
    files = {}
    for group, policy in decider.policies.items():
        size = policy.count * policy.crop.size
        waves = crops_BN[:, at : at + size].reshape(len(crops_BN), policy.count, -1)
        at += size
        if policy.after.axes == "T":
            made = batch.views[group][:, :rows].float().cpu().numpy().swapaxes(0, 1)
            waves = quantised(made / max(1.0, float(np.abs(made).max())))
        files[f"{group}.wav"] = wav(waves, policy)
    return files


def wav(waves_BVT: npt.NDArray[np.int16], policy: SoundPolicy) -> bytes:
    """Views behind each other, as a WAV file."""
    rate = policy.crop.rate
    quiet = np.zeros((*waves_BVT.shape[:2], round(SILENCE * rate)), dtype=np.int16)
    out = io.BytesIO()
    whole = np.concatenate([waves_BVT, quiet], axis=-1).ravel()
    soundfile_library().write(out, whole, rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def thumbnails(items: Sequence[tuple[bytes, Sequence[str]]]) -> Image.Image:
    """The waveforms of recordings, 20 s of each at most, with captions below them, two across."""
    font, height = ImageFont.load_default(13), WAVE + 2 * LINE + GAP
    lines = -(-len(items) // 2)
    picture = Image.new("RGB", (2 * (WIDTH + GAP) + GAP, max(1, lines) * height + GAP), "white")
    pen = ImageDraw.Draw(picture)
    for place, (data, captions) in enumerate(items):
        x, y = GAP + place % 2 * (WIDTH + GAP), GAP + place // 2 * height
        picture.paste(Image.fromarray(waveform(beginning(data))), (x, y))
        for line, words in enumerate(captions[:2]):
            pen.text((x, y + WAVE + line * LINE), words, "black", font)
    return picture


def beginning(data: bytes) -> F32:
    """The first seconds of a recording, the mean of its channels."""
    with opened(data) as sound:
        part = read_sound(sound, 0, min(sound.frames, LONGEST * sound.samplerate))
    mean: F32 = part.mean(1, dtype=np.float32)
    return mean


def picture(data: bytes, side: int) -> U8:
    """The log-spectrogram of a recording, 20 s at most, squeezed to (side, side, 3)."""
    sound_T = beginning(data)
    padded_T = np.pad(sound_T, (0, max(0, WINDOW - len(sound_T))))
    frames_TW = np.lib.stride_tricks.sliding_window_view(padded_T, WINDOW)[:: WINDOW // 2]
    power_TF = np.abs(np.fft.rfft(frames_TW * np.hanning(WINDOW))) ** 2
    drawn = Image.fromarray(spectrogram(np.log(power_TF + 1e-6).astype(np.float32).T))
    return np.array(drawn.resize((side, side), Image.Resampling.BOX))
