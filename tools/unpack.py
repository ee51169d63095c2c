"""Write packed samples back as image files: `python tools/unpack.py SHARDS FOLDER`."""

import sys
from pathlib import Path

from sslpipe.shards import open_manifest
from sslpipe.shards.read.store import open_store
from sslpipe.stream.reader import read_sample
from sslpipe.stream.records import wanted

shards, folder = sys.argv[1], Path(sys.argv[2]).resolve()
manifest = open_manifest(shards)
store = open_store(manifest)
for number, shard in enumerate(manifest.shards):
    tar = store.open(number)
    for row in range(len(tar.index)):
        want = wanted(tar.index, row, file=shard.file)
        sample, extension = read_sample(tar, want), want.ext
        target = (folder / f"{sample.key}.{extension}").resolve()
        if not target.is_relative_to(folder):
            sys.exit(f"{shard.file}: the key {sample.key!r} leads outside of {folder}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.data)
print(f"{manifest.samples} images in {folder}")
