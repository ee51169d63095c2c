"""Sidecars of shard sets as sslpipe wrote them before it indexed members."""

import hashlib
import json
import struct

from sslpipe.shards import read_index, read_manifest


def index_of_version_1(tar, index):
    """Its bytes, as sslpipe wrote them before members were indexed."""
    payloads = [index.payload(row) for row in range(len(index))]
    table = list(dict.fromkeys(index.extensions[payload.ext] for payload in payloads))
    names = "\n".join(table).encode()
    digest = bytes.fromhex(index.tar_sha256)
    data = struct.pack(
        "<8sHHIQ32s", b"sslpidx\0", 1, len(names), len(payloads), index.tar_bytes, digest
    )
    for row, place in enumerate(payloads):
        sample = index.sample(row)
        height, width, _, _ = sample.extent
        flags = sample.flags | (place.blocks - 1) << 8
        numbers = place.offset, sample.uid, place.size, place.crc, sample.label, width, height
        names += struct.pack(
            "<QqIIiHHHH", *numbers, table.index(index.extensions[place.ext]), flags
        )
    return data + names


def downgrade(folder):
    """Give a set the sidecars of version 1."""
    manifest = read_manifest(folder)
    document = json.loads((folder / "manifest.json").read_text())
    document["version"] = 1
    for name in ("modality", "extent", "flags"):
        del document[name]
    for shard, entry in zip(manifest.shards, document["shards"], strict=True):
        data = index_of_version_1(manifest.tar(shard), read_index(folder / shard.file))
        (folder / f"{shard.file}.idx").write_bytes(data)
        entry["index_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(document))
