"""New indexes for a whole set that is there, and not a byte of a tar: all of them, or none.

    .indexes-NAME/X.tar.idx ...    made one by one, kept by a run that was cut short; also what else
                                   is to lie beside the tars
    .indexes-NAME/manifest.json    written when all are there: from now on the new set is the set
    X.tar.idx ...                  moved to their places, manifests rewritten, the folder removed

Whoever is killed in the last step leaves it to the next run. Do not read a set meanwhile.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from ...errors import ShardError
from ..index import file_sha256, index_path, read_index, write_index
from ..manifest import FILE, Manifest, Shard, read_manifest, write_manifest
from ..verification import load_index

PREFIX = ".indexes-"  # of the folder for what is not there yet


def staged(manifest: Manifest, name: str) -> Path:
    """The folder for the new indexes of a set; those of other names, which were cut short, go."""
    folder = manifest.folder / (PREFIX + name)
    for other in manifest.folder.glob(PREFIX + "*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    return folder


def is_staged(folder: Path, shard: Shard) -> bool:
    """Whether the new index of a shard was made already."""
    try:
        index = read_index(folder / shard.file)
    except ShardError:
        return False
    return (index.tar_sha256, len(index)) == (shard.sha256, shard.samples)


def publish_indexes(manifest: Manifest, folder: Path) -> Manifest:
    """The set with the new indexes of all its shards, which lie in `folder`."""
    shards = tuple(
        replace(shard, index_sha256=file_sha256(index_path(folder / shard.file)))
        for shard in manifest.shards
    )
    write_manifest(replace(manifest, root=folder, shards=shards))
    finish_reindexing(manifest.folder)
    return replace(manifest, shards=shards)


def finish_reindexing(root: Path) -> None:
    """Move new indexes to their places, if a manifest says that all of them are there.

    Manifests that excluding rows has left beside the newest get them, too.
    """
    for written in sorted(root.glob(f"{PREFIX}*/{FILE}")):
        new = read_manifest(written)
        for shard in new.shards:
            index = index_path(written.parent / shard.file)
            if index.exists():  # else a run that was cut short has moved it
                index.replace(index_path(root / shard.file))
        for other in sorted(written.parent.iterdir()):
            if other.suffix not in (".json", ".part"):
                other.replace(root / other.name)
        known = {(shard.file, shard.sha256): shard for shard in new.shards}
        for path in sorted(root.glob("manifest*.json")):  # manifest.json last
            old = read_manifest(path)
            shards = tuple(known.get((shard.file, shard.sha256), shard) for shard in old.shards)
            write_manifest(replace(old, shards=shards, counted=new.counted), path.name)
        shutil.rmtree(written.parent)


def reindexed(manifest: Manifest, shard: Shard, folder: Path, extent: int, values: object) -> None:
    """Write the index of a shard into `folder`, with other values for one number of its extents."""
    index = load_index(manifest, shard)
    samples = index.samples.copy()
    samples["extent"][:, extent] = values
    write_index(folder / shard.file, replace(index, samples=samples))
