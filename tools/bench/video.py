"""Clips per second: frames on demand against decoding whole files, and against plain loaders.

    python tools/bench/video.py [--videos 96] [--seconds 10] [--folder /tmp/video_bench]

Makes its own videos, once: h264, 256 x 256, 64 frames, a key frame every 12, moving noise. A clip
is 16 frames: in a row ("stride 1", so that most of a file is not needed) or every fourth ("stride
4", so that all of it is, and only what becomes RGB differs). Three tables, one line of JSON each:

decode   one thread, bytes in memory to uint8 frames, by CPU time: ours; all frames by our decoder,
         then cut; all by PyAV, then cut, as plain loaders do; as far as the last by PyAV
loader   files or shards to float views of 224 px, as many workers as cores: ours against a
         DataLoader of PyAV and torchvision v2, which decodes all or stops at its last frame. One
         pass with processes started, in clips per second; and milliseconds of CPU time of a clip,
         workers included and starting left out: five passes less one. Each goes in turn, and the
         best of three counts
main     CPU time of our main process for a clip in batches of 64, of 1,024 videos of 32 x 32 px, as
         pixels do not count: what is planned, sent and taken back (workers decode), on average over
         as many steps as are planned together; and the tables of views and masks
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import sslpipe
from sslpipe.modalities.video.codec import VideoCodec
from sslpipe.modalities.video.decode import ClipDecode
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Place
from sslpipe.shards.make.pack import PackSettings, pack
from sslpipe.stream.reader import Sample

FRAMES, LENGTH, SIDE, VIEW, BATCH, TURNS = 16, 64, 256, 224, 16, 3
PASSES = 5
# videos of the main process: their side, how many there are, and how many that differ
SMALL, MANY, DISTINCT = 32, 1024, 64
# its steps: until as many as ever are planned together, and those that are measured
WARM, COUNTED = 56, 64
CORES = len(os.sched_getaffinity(0))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RECIPE = f"""
modality: video
stream: {{batch_size: {BATCH}}}
views:
  global:
    ops:
      - UniformClip: {{frames: {FRAMES}, stride: STRIDE}}
      - RandomResizedCrop: {{size: [{VIEW}, {VIEW}], scale: [0.5, 1.0]}}
      - RandomHorizontalFlip
      - Normalize: {{mean: {MEAN}, std: {STD}}}
masks:
  tube: {{patch_size: [2, 16, 16], sampler: tube}}
run: {{workers: {CORES}}}
"""


def encoded(number: int, side: int = SIDE) -> bytes:
    """A video of smooth noise that moves."""
    rng, out = np.random.default_rng(number), io.BytesIO()
    coarse = rng.integers(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
    noise = rng.normal(0, 6, (side, side, 3))
    still = np.clip(coarse.repeat(8, 0).repeat(8, 1) + noise, 0, 255).astype(np.uint8)
    step = rng.integers(-3, 4, 2)
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=30, options={"g": "12", "crf": "23"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for t in range(LENGTH):
            pixels = np.ascontiguousarray(np.roll(still, tuple(step * t), (0, 1)))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def corpus(folder: Path, videos: int) -> tuple[list[Path], Path]:
    """The files, and the same packed; made once."""
    files = [folder / "files" / f"{number:05d}.mp4" for number in range(videos)]
    for number, path in enumerate(files):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(encoded(number))
    shards = folder / f"shards{videos}"
    if not (shards / "manifest.json").exists():
        chosen = folder / f"files{videos}"
        chosen.mkdir(exist_ok=True)
        for path in files:
            (chosen / path.name).unlink(missing_ok=True)
            (chosen / path.name).hardlink_to(path)
        pack(chosen, shards, PackSettings(codec=VideoCodec(), check="header"))
    return files, shards


def small_corpus(folder: Path) -> Path:
    """Many small videos, packed; made once."""
    files, shards = folder / "small", folder / "small_shards"
    if not (shards / "manifest.json").exists():
        files.mkdir(parents=True, exist_ok=True)
        distinct = [encoded(number, SMALL) for number in range(DISTINCT)]
        for number in range(MANY):
            (files / f"{number:05d}.mp4").write_bytes(distinct[number % DISTINCT])
        pack(files, shards, PackSettings(codec=VideoCodec(), check="header"))
    return shards


def all_by_pyav(data: bytes, numbers: list[int], *, stop: bool = False) -> np.ndarray:
    """All frames one after another, then those that are wanted; stop: at the last of them."""
    frames = []
    with av.open(io.BytesIO(data)) as file:
        file.streams.video[0].thread_count = 1
        for frame in file.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24"))
            if stop and len(frames) > numbers[-1]:
                break
    return np.stack([frames[number] for number in numbers])


def clip_of(rng: np.random.Generator, stride: int) -> list[int]:
    """The frames of a random clip."""
    start = int(rng.integers(LENGTH - FRAMES * stride + 1))
    return [start + stride * t for t in range(FRAMES)]


def decode_table(files: list[Path], stride: int, seconds: float) -> dict[str, float]:
    """Clips per second of CPU time, of each way in turn, clip by clip."""
    datas = [path.read_bytes() for path in files[:32]]
    decode = ClipDecode(None)

    def whole(data: bytes, numbers: list[int]) -> np.ndarray:
        return decode(Sample(0, "", -1, data), []).data[numbers]

    ways: dict[str, Callable[[bytes, list[int]], Any]] = {
        "ours": lambda data, numbers: decode(Sample(0, "", -1, data), numbers).data,
        "ours, whole files": whole,
        "PyAV, whole files": all_by_pyav,
        "PyAV, to the last frame": partial(all_by_pyav, stop=True),
    }
    spent, rng, done = dict.fromkeys(ways, 0.0), np.random.default_rng(0), 0
    while sum(spent.values()) < seconds:
        data, numbers = datas[done % len(datas)], clip_of(rng, stride)
        for name, way in ways.items():
            start = time.process_time()
            way(data, numbers)
            spent[name] += time.process_time() - start
        done += 1
    return {name: done / each for name, each in spent.items()}


class PlainClips(Dataset[torch.Tensor]):
    """What a plain loader does: PyAV, then torchvision's v2 on the clip."""

    def __init__(self, files: list[Path], stride: int, *, stop: bool) -> None:
        self.files, self.stride, self.stop = files, stride, stop
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(VIEW, (0.5, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> torch.Tensor:
        numbers = clip_of(np.random.default_rng(), self.stride)
        data = self.files[place].read_bytes()
        clip = torch.from_numpy(all_by_pyav(data, numbers, stop=self.stop))
        return self.transform(clip.permute(0, 3, 1, 2)).transpose(0, 1)


def plain(files: list[Path], stride: int, passes: int, *, stop: bool) -> Iterator[int]:
    torch.set_num_threads(1)
    data = PlainClips(files, stride, stop=stop)
    loader = DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=CORES, persistent_workers=True
    )
    for _ in range(passes):
        for batch in loader:
            yield len(batch)


def ours(shards: Path, stride: int, passes: int) -> Iterator[int]:
    recipe = parse_recipe(RECIPE.replace("STRIDE", str(stride)))
    with sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1) as pipe:
        for _ in range(passes):
            for batch in pipe:
                yield batch.views["global"].shape[1]


def loader_tables(files: list[Path], shards: Path, stride: int) -> dict[str, dict[str, float]]:
    """Clips per second of one pass, start-up included; milliseconds of CPU time, it left out."""
    ways: dict[str, Callable[[int], Iterator[int]]] = {
        "ours": lambda passes: ours(shards, stride, passes),
        "PyAV + v2, whole files": lambda passes: plain(files, stride, passes, stop=False),
        "PyAV + v2, to the last frame": lambda passes: plain(files, stride, passes, stop=True),
    }
    rates, costs = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, float("inf"))
    for _ in range(TURNS):
        for name, way in ways.items():
            start = time.perf_counter()
            clips = sum(way(1))
            rates[name] = max(rates[name], clips / (time.perf_counter() - start))
            costs[name] = min(costs[name], 1000 * cost(way(PASSES), len(files)))
    return {"loader, clips/s": rates, "loader, CPU ms/clip": costs}


def cost(batches: Iterator[int], first: int) -> float:
    """Seconds of CPU time of a clip, of this process and its workers, the `first` ones left out."""
    done, begun = 0, (0, 0.0)
    for clips in batches:
        done += clips
        if begun == (0, 0.0) and done >= first:
            begun = done, cpu_seconds()
        last = cpu_seconds()
    return (last - begun[1]) / (done - begun[0])


def cpu_seconds() -> float:
    """CPU time of this process and of its children, which live."""
    tick, own = os.sysconf("SC_CLK_TCK"), sum(os.times()[:2])
    children = [
        pid
        for file in Path("/proc/self/task").glob("*/children")
        for pid in file.read_text().split()
    ]
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children]
    return own + sum(int(f[11]) + int(f[12]) for f in fields) / tick


def main_table(shards: Path, stride: int) -> dict[str, float]:
    """Microseconds of CPU time of the main process for a clip."""
    recipe = parse_recipe(RECIPE.replace("STRIDE", str(stride)).replace("_size: 16", "_size: 64"))
    with sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1) as pipe:
        for step in range(WARM):
            pipe.loading.load_ahead(step)
        start = time.process_time()
        for step in range(WARM, WARM + COUNTED):
            share = pipe.loading.load_ahead(step)
        loading = (time.process_time() - start) / COUNTED / len(share.uids)
        (part,), (column,), (drawn,) = pipe.parts, share.columns, share.drawn
        place, start = Place(0, np.arange(len(share.uids)), len(share.uids)), time.process_time()
        for _ in range(COUNTED):
            part.decide(column, epochs=share.epochs, uids=share.uids, place=place, drawn=drawn)
        deciding = (time.process_time() - start) / COUNTED / len(share.uids)
    return {"plan, send, take back": 1e6 * loading, "tables": 1e6 * deciding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/video_bench"))
    given = parser.parse_args()
    files, shards = corpus(given.folder, given.videos)
    small = small_corpus(given.folder)
    for stride in (1, 4):
        tables = {
            "decode, clips per CPU second": decode_table(files, stride, given.seconds),
            **loader_tables(files, shards, stride),
            "main process, us/clip": main_table(small, stride),
        }
        for name, table in tables.items():
            row = {key: round(value, 1) for key, value in table.items()}
            sys.stdout.write(json.dumps({"table": name, "stride": stride, **row}) + "\n")


if __name__ == "__main__":
    main()
