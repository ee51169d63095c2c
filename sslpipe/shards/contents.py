"""What a shard set holds: totals, histograms, keys, and single samples with all their members."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ShardError
from ..rng import sample_id
from .codec import Codec, histogram
from .index import Index, parse_index
from .manifest import Manifest, Shard
from .read.download import Patience, read_whole
from .read.tars import open_tar
from .tar_headers import member_key
from .verification import AGAIN, check_meant


@dataclass(frozen=True, slots=True)
class Contents:
    """Totals and histograms of a set, excluded samples included."""

    name: str
    modality: str
    fingerprint: str
    samples: int
    excluded: int
    shards: int
    tar_bytes: int
    payload_bytes: int
    classes: tuple[str, ...]
    formats: dict[str, int]  # extension of the payload -> samples
    members: dict[str, int]  # extension of any other member -> samples
    flags: dict[str, int]  # name of a flag -> samples that have it
    labels: dict[int, int]  # label -> samples; -1: none
    measure: str  # what `sizes` counts by
    sizes: dict[str, int]  # histogram of the codec's measure


@dataclass(frozen=True, slots=True)
class Extract:
    """One sample of a set, with all its members and what the index says of it."""

    key: str
    uid: int
    shard: str
    row: int  # in its shard
    label: int
    extent: dict[str, int]  # by the names of the manifest; all 0: not known
    flags: tuple[str, ...]
    excluded: bool
    payload: str  # extension of the member that is streamed
    members: dict[str, bytes]  # by extension


def survey(manifest: Manifest, codec: Codec) -> Contents:
    """Count what the indexes say; the tars are not read."""
    formats: Counter[str] = Counter()
    members: Counter[str] = Counter()
    labels: Counter[int] = Counter()
    flags: Counter[str] = Counter()
    sizes: list[Any] = []
    payload_bytes = 0
    for shard in manifest.shards:
        index = index_of(manifest, shard)
        samples, payloads = index.samples, index.payloads
        formats.update(by_extension(index, payloads["ext"]))
        members.update(by_extension(index, index.members["ext"]))
        labels.update(dict(counts(samples["label"])))
        flags.update({n: int((samples["flags"] & b > 0).sum()) for n, b in manifest.flags.items()})
        sizes.append(samples["extent"])
        payload_bytes += int(payloads["size"].sum(dtype=np.int64))
    members.subtract(formats)
    return Contents(
        name=manifest.name,
        modality=manifest.modality,
        fingerprint=manifest.fingerprint,
        samples=manifest.samples,
        excluded=sum(map(len, manifest.exclude.values())),
        shards=len(manifest.shards),
        tar_bytes=sum(shard.bytes for shard in manifest.shards),
        payload_bytes=payload_bytes,
        classes=manifest.classes,
        formats=dict(formats.most_common()),
        members=dict((+members).most_common()),
        flags=dict(flags),
        labels=dict(sorted(labels.items())),
        measure=codec.measure,
        sizes=histogram(codec, np.concatenate(sizes)),
    )


def by_extension(index: Index, codes: Any) -> dict[str, int]:
    """Extension -> members of it, of some members."""
    return {index.extensions[code]: count for code, count in counts(codes)}


def counts(values: Any) -> list[tuple[int, int]]:
    """Each value and how often it occurs."""
    return [(int(v), int(n)) for v, n in zip(*np.unique(values, return_counts=True), strict=True)]


def index_of(manifest: Manifest, shard: Shard) -> Index:
    """The index of a shard, wherever it lies.

    Raises:
        ShardError: it is missing, damaged, or not the one that the manifest means.
    """
    place = str(manifest.index_place(shard))
    try:
        data = read_whole(place, Patience())
    except OSError as error:
        raise ShardError(f"{place}: cannot be read ({error.strerror}); {AGAIN}") from error
    return check_meant(parse_index(data, place), data, shard, place)


def labels_kept(manifest: Manifest, shard: Shard) -> npt.NDArray[np.int64]:
    """The label of each sample of a shard, by its index; -1: it has none, or is left out."""
    labels = index_of(manifest, shard).samples["label"].astype(np.int64)
    labels[list(manifest.exclude.get(shard.file, ()))] = -1
    return labels


def list_keys(manifest: Manifest) -> Iterator[str]:
    """Every key, in the order of the set, from the tars' headers.

    Raises:
        SampleError: a damaged header.
    """
    for shard in manifest.shards:
        with open_tar(str(manifest.tar_place(shard))) as tar:
            index = index_of(manifest, shard)
            for row in range(len(index)):
                payload = index.payload(row)
                tar.seek(payload.start)
                yield member_key(tar.read(payload.header))


def find_key(manifest: Manifest, key: str) -> tuple[Shard, int]:
    """Shard and row of a key.

    Raises:
        ShardError: there is no such key.
    """
    uid = sample_id(key)
    for shard in manifest.shards:
        rows = np.flatnonzero(index_of(manifest, shard).samples["uid"] == uid)
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


def extract_sample(manifest: Manifest, shard: Shard, row: int) -> Extract:
    """One sample with all its members.

    Raises:
        ShardError: the tar cannot be read.
        SampleError: the header is damaged.
    """
    index = index_of(manifest, shard)
    sample, payload, extensions = index.sample(row), index.payload(row), index.extensions
    members: dict[str, bytes] = {}
    with open_tar(str(manifest.tar_place(shard))) as tar:
        tar.seek(payload.start)
        key = member_key(tar.read(payload.header))
        for ext, member in index.members_of(row).items():
            tar.seek(member.offset)
            members[ext] = tar.read(member.size)
    return Extract(
        key=key,
        uid=sample.uid,
        shard=shard.file,
        row=row,
        label=sample.label,
        extent=dict(zip(manifest.extent, sample.extent, strict=False)),
        flags=tuple(name for name, bit in manifest.flags.items() if sample.flags & bit),
        excluded=row in manifest.exclude.get(shard.file, ()),
        payload=extensions[payload.ext],
        members=members,
    )


def spread_samples(manifest: Manifest, count: int) -> list[tuple[Shard, int]]:
    """Up to `count` samples, evenly over the set."""
    numbers = np.linspace(0, manifest.samples - 1, min(count, manifest.samples))
    return [find_row(manifest, round(number)) for number in numbers]


def read_payload(manifest: Manifest, shard: Shard, row: int) -> tuple[str, int, bytes]:
    """Key, label and payload of one sample, by its index."""
    index = index_of(manifest, shard)
    payload = index.payload(row)
    with open_tar(str(manifest.tar_place(shard))) as tar:
        tar.seek(payload.start)
        key = member_key(tar.read(payload.header))
        return key, index.sample(row).label, tar.read(payload.size)
