"""Write packed samples back as image files: `python tools/unpack.py SHARDS FOLDER`."""

import sys
from pathlib import Path

import numpy as np

from sslpipe.shards import index as shard_format
from sslpipe.shards import open_manifest, read_index
from sslpipe.shards.read.store import open_store
from sslpipe.stream.reader import Reader

shards, folder = sys.argv[1], Path(sys.argv[2]).resolve()
manifest = open_manifest(shards)
reader = Reader(open_store(manifest), shard_format)
for number, shard in enumerate(manifest.shards):
    index = read_index(manifest.tar(shard))
    for row in np.arange(len(index.records)):
        sample = reader.read(number, int(row))
        extension = index.extensions[int(index.records[row]["ext"])]
        target = (folder / f"{sample.key}.{extension}").resolve()
        if not target.is_relative_to(folder):
            sys.exit(f"{shard.file}: the key {sample.key!r} leads outside of {folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.data)
print(f"{manifest.samples} images in {folder}")
