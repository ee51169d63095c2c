"""One pass over a corpus by one loader, in a process of its own; prints one line of JSON.

    python tools/bench/loader_peers.py CASE CORPUS SHARDS

CORPUS is a folder of JPEGs, SHARDS the same images packed. Cases `simclr ...` make two augmented
views of 224 px per image; cases `crop ...` one RandomResizedCrop of 224 px and a flip. The clock
starts before the loader is built and stops at its last batch, so starting workers counts, imports
do not. Batches of 128, as many workers or threads as cores.
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import simplejpeg
import torch
import torchvision.transforms as v1
import webdataset
from augment_peers import SCALE, SIZE, Skip, pil_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

import sslpipe
import sslpipe.modalities.image.executors.cpu
import sslpipe.pipeline  # imports are not timed
from sslpipe.recipe import Recipe, find_recipe, load_recipe, parse_recipe
from sslpipe.shards import open_manifest

with suppress(ImportError):
    import cv2

BATCH = 128
CORES = len(os.sched_getaffinity(0))
CROP = f"""
stream: {{batch_size: {BATCH}}}
views:
  global:
    ops: [RandomResizedCrop: {{size: [{SIZE}, {SIZE}]}}, RandomHorizontalFlip]
"""
Counts = Iterable[int]  # images of each batch


def ours(recipe: Recipe, shards: Path) -> Counts:
    with sslpipe.load(recipe, shards=shards, device="cpu", epochs=1) as pipe:
        for batch in pipe:
            yield batch.views["global"].shape[1]


def simclr(shards: Path) -> Counts:
    path, overrides = find_recipe("simclr"), [f"stream.batch_size={BATCH}"]
    return ours(load_recipe(path, overrides=overrides), shards)


class Map:
    """Picklable: a webdataset sample -> what `transform` makes of its JPEG, twice if asked."""

    def __init__(self, transform: Callable[[Any], Any], views: int) -> None:
        self.transform, self.views = transform, views

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(self.transform(sample["jpg"]) for _ in range(self.views))


def tars(shards: Path) -> list[str]:
    manifest = open_manifest(shards)
    return [str(manifest.tar(shard)) for shard in manifest.shards]


def webdataset_loader(shards: Path, mapped: Map, *decoders: str) -> DataLoader[Any]:
    data = webdataset.WebDataset(tars(shards), shardshuffle=100, seed=0).shuffle(1000)
    data = data.decode(*decoders) if decoders else data
    return DataLoader(data.map(mapped), batch_size=BATCH, num_workers=CORES)


def folder_loader(corpus: Path, transform: Any, **settings: Any) -> DataLoader[Any]:
    data = ImageFolder(str(corpus), transform=transform, **settings)
    return DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=CORES)


class Twice:
    """Picklable: two views."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> tuple[Any, Any]:
        return self.transform(image), self.transform(image)


def counted(loader: DataLoader[Any]) -> Counts:
    for batch in loader:
        first = batch[0]
        while isinstance(first, list | tuple):
            first = first[0]
        yield len(first)


def read_jpeg(path: str) -> torch.Tensor:
    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def crop_v2() -> Any:
    return v2.Compose([v2.RandomResizedCrop(SIZE, SCALE), v2.RandomHorizontalFlip()])


def crop_pil() -> Any:
    crop = v1.RandomResizedCrop(SIZE, SCALE)
    return v1.Compose([crop, v1.RandomHorizontalFlip(), v1.PILToTensor()])


def crop_cv2(data: bytes) -> np.ndarray:
    """simplejpeg's fast decoding and cv2's area or linear filter: cheaper than antialiasing."""
    image = simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True)
    shape = torch.empty((3, *image.shape[:2]), device="meta")
    y, x, h, w = v1.RandomResizedCrop.get_params(shape, SCALE, (3 / 4, 4 / 3))
    filtered = cv2.INTER_AREA if w > SIZE else cv2.INTER_LINEAR
    made = cv2.resize(image[y : y + h, x : x + w], (SIZE, SIZE), interpolation=filtered)
    return cv2.flip(made, 1) if random.random() < 0.5 else made


def webdataset_cv2(shards: Path) -> Counts:
    if "cv2" not in sys.modules:
        raise Skip("cv2 is not installed")
    cv2.setNumThreads(0)
    return counted(webdataset_loader(shards, Map(crop_cv2, 1)))


CASES: Mapping[str, Callable[[Path, Path], Counts]] = MappingProxyType({
    "simclr sslpipe": lambda corpus, shards: simclr(shards),
    "simclr webdataset + PIL": lambda corpus, shards: counted(
        webdataset_loader(shards, Map(pil_transform(), 2), "pil")
    ),
    "simclr ImageFolder + PIL": lambda corpus, shards: counted(
        folder_loader(corpus, Twice(pil_transform()))
    ),
    "crop sslpipe": lambda corpus, shards: ours(parse_recipe(CROP), shards),
    "crop webdataset + simplejpeg + cv2": lambda corpus, shards: webdataset_cv2(shards),
    "crop ImageFolder + decode_jpeg + v2": lambda corpus, shards: counted(
        folder_loader(corpus, crop_v2(), loader=read_jpeg)
    ),
    "crop webdataset + PIL": lambda corpus, shards: counted(
        webdataset_loader(shards, Map(crop_pil(), 1), "pil")
    ),
})  # fmt: skip


def main() -> None:
    name, corpus, shards = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    images, start, before = 0, time.perf_counter(), time.process_time()
    try:
        for count in CASES[name](corpus, shards):
            images += count
            wall = time.perf_counter() - start  # to the last batch: what a loader has begun of
            own = time.process_time() - before  # the next pass is not counted
    except Skip as reason:
        said: dict[str, Any] = {"skipped": str(reason)}
    else:
        workers = resource.getrusage(resource.RUSAGE_CHILDREN)  # they have ended by now
        cpu = own + workers.ru_utime + workers.ru_stime
        said = {"images": images, "wall": wall, "cpu": cpu}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
