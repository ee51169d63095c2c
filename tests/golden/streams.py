"""Streams whose batches are on record: what `tests/test_golden.py` compares, and how it is made.

`python -m tests.golden.streams` writes tests/golden/*.json anew, one file per stream. Do so only
where a change of the batches is the purpose of a commit, and say in its message what changed.
"""

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sslpipe
from sslpipe.recipe import Recipe, find_recipe, load_recipe

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "shards" / "sample"  # 72 photos in 4 shards
STEPS = 3  # of each epoch; two epochs
WORLDS = (1, 3)  # ranks
PIXELS = 5e-4  # absolute tolerance of the sums of `pixels`: rounding, not another picture
BAD = ((0, 3), (1, 2), (1, 3), (2, 0))  # shard, row: one byte of the payload is flipped


@dataclass(frozen=True)
class Stream:
    """A recipe that ships with the package, changed by overrides, over some shards."""

    recipe: str
    overrides: tuple[str, ...] = ()
    shards: str = "sample"  # sample, damaged, mixture or foreign
    worlds: tuple[int, ...] = WORLDS


WHOLE = ("stream.batch_size=24",)  # 3 batches are the 72 photos
LEFT = ("stream.batch_size=21",)  # 3 batches, and 9 photos are left
LACKING = ("stream.batch_size=27",)  # the third batch lacks 9 photos
STREAMS: Mapping[str, Stream] = {
    # masks: every family
    "mae": Stream("mae_cifar", WHOLE),
    "simmim": Stream("simmim_cifar", WHOLE),
    "blockwise": Stream("beit_cifar", WHOLE),
    "ibot": Stream("ibot_cifar", WHOLE),
    "dinov2": Stream("dinov2_cifar", WHOLE),
    "multiblock": Stream("ijepa_cifar", WHOLE),
    "inverse_block": Stream("data2vec2_cifar", WHOLE),
    "region": Stream("inpainting_cifar", (*WHOLE, "masks.hole.sampler={random_region: {}}")),
    "centre": Stream("inpainting_cifar", (*WHOLE, "masks.hole.sampler=centre")),
    # tasks
    "rotation": Stream("rotation_cifar", WHOLE),
    "rotation_one": Stream("rotation_cifar", (*WHOLE, "targets.rotation.task=rotation_one")),
    "jigsaw": Stream("jigsaw_cifar", WHOLE),
    "relative_patch": Stream("relative_patch_cifar", WHOLE),
    "colorization": Stream("colorization_cifar", WHOLE),
    # views
    "simclr": Stream("simclr_cifar", WHOLE),
    "simclr_lanes": Stream("simclr_cifar", (*WHOLE, "stream.order=lanes", "stream.window=1")),
    "multicrop": Stream("dino_cifar", WHOLE),
    "shared_draws": Stream("byol_cifar", (*WHOLE, "views.global.draws=shared")),
    "decode_size": Stream("simclr_cifar", (*WHOLE, "decode={size: 96}")),
    "never_scaled": Stream("mae_cifar", (*WHOLE, "decode={scaled: never}")),
    # order and remainder
    "wrap": Stream("simsiam_cifar", LEFT),
    "drop": Stream("simsiam_cifar", (*LEFT, "stream.remainder=drop")),
    "pad": Stream("simsiam_cifar", (*LACKING, "stream.remainder=pad")),
    "short": Stream("simsiam_cifar", (*LACKING, "stream.order=sequential"), worlds=(1,)),
    "mixture": Stream("mae_cifar", (*WHOLE, "stream.mix={a: 0.7, b: 0.3}"), "mixture"),
    "foreign": Stream("mae_cifar", (*WHOLE, "stream.epoch_samples=72"), "foreign"),
    # bad samples
    "replace": Stream("simclr_cifar", (*WHOLE, "stream.on_bad=replace"), "damaged"),
    "mask": Stream("mae_cifar", (*WHOLE, "stream.on_bad=mask"), "damaged"),
    "exclude": Stream("ijepa_cifar", (*WHOLE, "stream.on_bad=exclude"), "damaged"),
}


def recipe_of(stream: Stream, workers: int) -> Recipe:
    """The recipe of a stream: made by the `kornia` executor, the reference, in one thread."""
    run = f"run={{executor: kornia, prefetch: 0, workers: {workers}}}"
    overrides = (*stream.overrides, run)
    return load_recipe(find_recipe(stream.recipe), overrides=overrides)


def shards_of(kind: str, folder: Path, rank: int, world_size: int) -> Any:
    """What a stream is read from; `folder` is a place for copies of the sample set."""
    if kind == "sample":
        return SAMPLE
    if kind == "damaged":
        return damaged(folder / "damaged")
    if kind == "mixture":
        return {"a": SAMPLE, "b": partly_excluded(folder / "excluded")}
    return photos()[rank::world_size]


def damaged(folder: Path) -> Path:
    """The sample set with four flipped bits; by the tars alone, whatever the index looks like."""
    if not folder.exists():
        shutil.copytree(SAMPLE, folder)
        tars = sorted(folder.glob("*.tar"))
        for shard, row in BAD:
            with tarfile.open(tars[shard]) as tar:
                member = [m for m in tar.getmembers() if not m.name.endswith(".cls")][row]
            data = bytearray(tars[shard].read_bytes())
            data[member.offset_data + member.size // 2] ^= 0xFF
            tars[shard].write_bytes(data)
    return folder


def partly_excluded(folder: Path) -> Path:
    """The sample set without three of its rows."""
    if not folder.exists():
        shutil.copytree(SAMPLE, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["exclude"] = {"photos-000000.tar": [0, 7], "photos-000003.tar": [1]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def photos() -> list[dict[str, Any]]:
    """The sample set as webdataset would give it."""
    samples: dict[str, dict[str, Any]] = {}
    for path in sorted(SAMPLE.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ext = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples.setdefault(key, {"__key__": key})[ext] = file.read()
    return list(samples.values())


def batches(
    stream: Stream, folder: Path, rank: int, world_size: int, workers: int
) -> Iterator[sslpipe.Batch]:
    """The first STEPS batches, or all if there are fewer, of two epochs."""
    with sslpipe.load(
        recipe_of(stream, workers),
        shards=shards_of(stream.shards, folder, rank, world_size),
        device="cpu",
        rank=rank,
        world_size=world_size,
    ) as pipe:
        for _ in range(2):
            start = pipe.step
            for batch in pipe:
                if batch.step - start < STEPS:
                    yield batch


def record(batch: sslpipe.Batch) -> dict[str, Any]:
    """What is compared of a batch: a digest of all that is exact, and sums of its pixels."""
    exact = hashlib.blake2b(digest_size=16)
    head = (batch.keys, batch.epoch, batch.step)
    exact.update(repr(head).encode())
    for tensor in (batch.uids, batch.labels, batch.valid):
        exact.update(tensor.numpy().tobytes())
    inexact = {f"views/{name}": pixels(view.numpy()) for name, view in batch.views.items()}
    fields = {"params": batch.params, "masks": batch.masks, "targets": batch.targets}
    for field, tensors in fields.items():
        for name, tensor in sorted(tensors.items()):
            if field == "targets" and tensor.is_floating_point():
                inexact[f"targets/{name}"] = pixels(tensor.numpy())
                continue
            exact.update(f"{field} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            exact.update(tensor.numpy().tobytes())
    for name, hidden in sorted(batch.hidden.items()):
        exact.update(f"hidden {name} {hidden.shape}".encode() + hidden.tobytes())
    return {"exact": exact.hexdigest(), "pixels": inexact}


def pixels(values: np.ndarray) -> list[float]:
    """Mean, standard deviation, and three sums with fixed random signs, of everything."""
    flat = values.astype(np.float64).ravel()
    signs = np.random.default_rng(flat.size).choice([-1.0, 1.0], size=(3, flat.size))
    sums = signs @ flat / np.sqrt(flat.size)
    return [round(float(value), 6) for value in (flat.mean(), flat.std(), *sums)]


def records(name: str, folder: Path, workers: Sequence[int]) -> list[dict[str, Any]]:
    """The records of a stream: of each step, those of all ranks in order.

    `workers` has the number of worker processes of each rank.
    """
    stream, world_size = STREAMS[name], len(workers)
    ranks = [batches(stream, folder, rank, world_size, each) for rank, each in enumerate(workers)]
    return [record(batch) for step in zip(*ranks, strict=True) for batch in step]


def main() -> None:
    """Write all records anew."""
    with tempfile.TemporaryDirectory() as place:
        for name, stream in STREAMS.items():
            made = {str(world): records(name, Path(place), [0] * world) for world in stream.worlds}
            lines = (f'"{world}": [\n{rows(found)}\n]' for world, found in made.items())
            (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def rows(found: list[dict[str, Any]]) -> str:
    """One record a line."""
    return ",\n".join(json.dumps(row) for row in found)


if __name__ == "__main__":
    main()
