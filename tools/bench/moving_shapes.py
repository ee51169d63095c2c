"""Clips whose label is a motion: a shape on a plain ground goes, turns, grows or shrinks.

Shape, colours, texture, size, place and speed are drawn for each clip alike in all classes. In the
middle of a clip all motions have the same places, on a ring, and sizes, so that its middle frame
tells nothing of the class; what frames tell without their order is at most a pair of classes.
"""

import io
from pathlib import Path

import av
import numpy as np

MOTIONS = ("left", "right", "up", "down", "clockwise", "counterclockwise", "grow", "shrink")
FRAMES, SIDE, RATE = 32, 64, 16
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TURN = {"clockwise": 1, "counterclockwise": -1}  # rows count downwards
GROWTH = {"grow": 1, "shrink": -1}


def clip(number: int, motion: str, *, seed: int = 0) -> np.ndarray:
    """Clip `number` of a motion, (FRAMES, SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng([seed, number])
    ground, colour = rng.integers(0, 120, 3), rng.integers(130, 256, 3)
    grain = rng.normal(0, 12, (SIDE, SIDE, 1))
    kind = rng.integers(3)
    track = path(motion, rng)
    weights = np.stack([shape(kind, *at) for at in track])[..., None]
    return np.clip(ground + (colour - ground) * weights + grain, 0, 255).astype(np.uint8)


def path(motion: str, rng: np.random.Generator) -> np.ndarray:
    """Column, row and radius of the shape at each time, (FRAMES, 3); places wrap around."""
    times = np.arange(FRAMES) - FRAMES / 2
    radius, speed = rng.uniform(0.10, 0.18) * SIDE, rng.uniform(0.6, 1.2) * SIDE / 64
    angles = np.full(FRAMES, rng.uniform(0, 2 * np.pi))
    radii = np.full(FRAMES, radius)
    if motion in TURN:
        angles = angles + TURN[motion] * 0.14 * speed * times
    if motion in GROWTH:
        radii = radius * (1 + GROWTH[motion] * 1.1 * times / FRAMES)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = SIDE / 2 + 0.22 * SIDE * ring + speed * times[:, None] * STEP.get(motion, (0, 0))
    return np.concatenate([places, radii[:, None]], axis=1)


def shape(kind: int, column: float, row: float, radius: float) -> np.ndarray:
    """How much of each pixel a disc, a square or a diamond covers, (SIDE, SIDE)."""
    half = SIDE / 2
    across, down = (np.abs((np.arange(SIDE) - at + half) % SIDE - half) for at in (column, row))
    across, down = np.meshgrid(across, down)
    distance = (np.hypot(across, down), np.maximum(across, down), across + down)[kind]
    return np.clip(radius - distance + 0.5, 0, 1)


def write(folder: Path, numbers: range, *, seed: int = 0) -> None:
    """Write clips as FOLDER/MOTION/NUMBER.mp4; motions take turns."""
    for number in numbers:
        motion = MOTIONS[number % len(MOTIONS)]
        place = folder / motion / f"{number:05d}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(clip(number, motion, seed=seed)))


def encoded(frames: np.ndarray) -> bytes:
    """Frames as an mp4 of whole pictures: mpeg4 repeats its bytes, and any frame is read alone."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = 1, 1
        stream.codec_context.qmin = stream.codec_context.qmax = 4
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()
