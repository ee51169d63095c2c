"""Where a measurement comes from: one Markdown row for BENCHMARKS.md, and the corpus they share."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from sslpipe.modalities.image.decode import decode
from sslpipe.shards import open_manifest
from sslpipe.shards.read.store import open_store
from sslpipe.stream.reader import read_sample
from sslpipe.stream.records import wanted

ROOT = Path(__file__).parents[2]


def row(figures: str, *packages: str) -> str:
    """| date | commit | hardware | versions | command | figures |"""
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", *packages))
    command = " ".join(["python", *sys.argv])
    return f"| {today} | {commit} | {hardware()} | {versions} | `{command}` | {figures} |"


def hardware() -> str:
    """Cores of this process, and the GPU if there is one."""
    cores = f"{len(os.sched_getaffinity(0))} cores {platform.machine()}"
    return f"{cores}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cores


def sample_photos() -> list[np.ndarray]:
    """The photos of shards/sample, (H, W, 3) uint8."""
    manifest = open_manifest(ROOT / "shards" / "sample")
    store = open_store(manifest)
    tars = [(store.open(number), shard.file) for number, shard in enumerate(manifest.shards)]
    return [
        decode(read_sample(tar, wanted(tar.index, row, file=file)).data)
        for tar, file in tars
        for row in range(len(tar.index))
    ]


def write_corpus(folder: Path, count: int) -> Path:
    """`count` JPEGs like ImageNet's (500 x 375, about 100 kB) made of the sample photos: random
    zooms and mirrors with luma noise, quality 92, 4:2:0. Deterministic; made once.
    """
    if (folder / "done").exists():
        return folder
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in sample_photos()]
    for number in range(count):
        photo = photos[number % len(photos)]
        zoom = rng.uniform(0.6, 1.0)
        width, height = (max(1, round(side * zoom)) for side in photo.size)
        x, y = (
            rng.integers(0, photo.size[0] - width + 1),
            rng.integers(0, photo.size[1] - height + 1),
        )
        crop = photo.resize((500, 375), Image.Resampling.BICUBIC, (x, y, x + width, y + height))
        pixels = np.asarray(crop)[:, :: rng.choice([-1, 1])].astype(np.float32)
        noisy = pixels + rng.normal(0, rng.uniform(8, 16), (375, 500, 1)).astype(np.float32)
        jpeg = simplejpeg.encode_jpeg(
            np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8)),
            quality=92,
            colorspace="RGB",
            colorsubsampling="420",
        )
        path = folder / f"class{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    (folder / "done").touch()
    return folder
