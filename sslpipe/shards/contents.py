"""What a shard set holds: totals, histograms, keys, and single samples with all their members."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import ShardError
from ..rng import sample_id
from .index import GPU_JPEG, Index, header_range, member_key, parse_index
from .make.exports import list_members
from .manifest import Manifest, Shard
from .read.download import Patience, read_whole
from .read.tars import open_tar

SIDES = (64, 128, 256, 384, 512, 768, 1024, 2048)  # pixels: edges of the histogram


@dataclass(frozen=True, slots=True)
class Contents:
    """Totals and histograms of a set, excluded samples included."""

    name: str
    fingerprint: str
    samples: int
    excluded: int
    shards: int
    tar_bytes: int
    payload_bytes: int
    classes: tuple[str, ...]
    formats: dict[str, int]  # extension -> samples
    gpu_jpegs: int  # what GPU decoders take
    labels: dict[int, int]  # label -> samples; -1: none
    sides: dict[str, int]  # shorter side in pixels -> samples


@dataclass(frozen=True, slots=True)
class Extract:
    """One sample of a set."""

    key: str
    uid: int
    shard: str
    row: int  # in its shard
    label: int
    width: int  # 0: not known
    height: int
    excluded: bool
    payload: str  # extension of the member that is streamed
    members: dict[str, bytes]  # by extension


def survey(manifest: Manifest) -> Contents:
    """Count what the indexes say; the tars are not read."""
    formats: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    sides = np.zeros(len(SIDES) + 2, np.int64)
    payload_bytes = gpu_jpegs = 0
    for shard in manifest.shards:
        index = index_of(manifest, shard)
        records = index.records
        for ext, count in counts(records["ext"]):
            formats[index.extensions[ext]] += count
        labels.update(dict(counts(records["label"])))
        shorter = np.minimum(records["width"], records["height"])
        place = np.where(shorter == 0, 0, 1 + np.digitize(shorter, SIDES))
        sides += np.bincount(place, minlength=len(sides))
        payload_bytes += int(records["size"].sum(dtype=np.int64))
        gpu_jpegs += int((records["flags"] & GPU_JPEG).sum(dtype=np.int64))
    return Contents(
        name=manifest.name,
        fingerprint=manifest.fingerprint,
        samples=manifest.samples,
        excluded=sum(map(len, manifest.exclude.values())),
        shards=len(manifest.shards),
        tar_bytes=sum(shard.bytes for shard in manifest.shards),
        payload_bytes=payload_bytes,
        classes=manifest.classes,
        formats=dict(formats.most_common()),
        gpu_jpegs=gpu_jpegs,
        labels=dict(sorted(labels.items())),
        sides={name: int(n) for name, n in zip(side_names(), sides, strict=True) if n},
    )


def counts(values: Any) -> list[tuple[int, int]]:
    """Each value and how often it occurs."""
    return [(int(v), int(n)) for v, n in zip(*np.unique(values, return_counts=True), strict=True)]


def side_names() -> list[str]:
    """Names of the bins of the histogram of shorter sides."""
    between = [f"{low} to {high - 1}" for low, high in pairwise(SIDES)]
    return ["unknown", f"under {SIDES[0]}", *between, f"{SIDES[-1]} and more"]


def index_of(manifest: Manifest, shard: Shard) -> Index:
    place = manifest.index_place(shard)
    return parse_index(read_whole(place, Patience()), str(place))


def list_keys(manifest: Manifest) -> Iterator[str]:
    """Every key, in the order of the set, from the tars' headers.

    Raises:
        SampleError: a damaged header.
    """
    for shard in manifest.shards:
        with open_tar(str(manifest.tar_place(shard))) as tar:
            for record in index_of(manifest, shard).records:
                start, length = header_range(record)
                tar.seek(start)
                yield member_key(tar.read(length))


def find_key(manifest: Manifest, key: str) -> tuple[Shard, int]:
    """Shard and row of a key.

    Raises:
        ShardError: there is no such key.
    """
    uid = sample_id(key)
    for shard in manifest.shards:
        rows = np.flatnonzero(index_of(manifest, shard).records["uid"] == uid)
        if len(rows):
            return shard, int(rows[0])
    raise ShardError(
        f"{manifest.root}: has no sample {key!r}; `sslpipe inspect {manifest.root} --keys` "
        "lists its keys"
    )


def find_row(manifest: Manifest, number: int) -> tuple[Shard, int]:
    """Shard and row of the sample at a place of the whole set, counted from 0.

    Raises:
        ShardError: there are not so many.
    """
    if not 0 <= number < manifest.samples:
        raise ShardError(
            f"{manifest.root}: row {number} does not exist; it has rows 0 to {manifest.samples - 1}"
        )
    for shard in manifest.shards:
        if number < shard.samples:
            break
        number -= shard.samples
    return shard, number


def extract(manifest: Manifest, shard: Shard, row: int) -> Extract:
    """One sample with all its members.

    Raises:
        ShardError: the tar cannot be read.
        SampleError: the header is damaged.
    """
    index, url = index_of(manifest, shard), str(manifest.tar_place(shard))
    record = index.records[row]
    listing = list_members(url, shard)
    with open_tar(url) as tar:
        start, length = header_range(record)
        tar.seek(start)
        key = member_key(tar.read(length))
        members: dict[str, bytes] = {}
        for member in listing.members:
            if member.key == key and member.ext.lower() not in members:
                tar.seek(member.offset)
                members[member.ext.lower()] = tar.read(member.size)
    return Extract(
        key=key,
        uid=int(record["uid"]),
        shard=shard.file,
        row=row,
        label=int(record["label"]),
        width=int(record["width"]),
        height=int(record["height"]),
        excluded=row in manifest.exclude.get(shard.file, ()),
        payload=index.extensions[record["ext"]],
        members=members,
    )


def spread(manifest: Manifest, count: int) -> list[tuple[Shard, int]]:
    """Up to `count` samples, evenly over the set."""
    numbers = np.linspace(0, manifest.samples - 1, min(count, manifest.samples))
    return [find_row(manifest, round(number)) for number in numbers]


def read_payload(manifest: Manifest, shard: Shard, row: int) -> tuple[str, int, bytes]:
    """Key, label and payload of one sample, by its index."""
    record = index_of(manifest, shard).records[row]
    start, length = header_range(record)
    with open_tar(str(manifest.tar_place(shard))) as tar:
        tar.seek(start)
        key = member_key(tar.read(length))
        return key, int(record["label"]), tar.read(int(record["size"]))
