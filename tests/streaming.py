"""What the tests of streams share: to load, to walk, and to compare what was decided."""

import sslpipe
from sslpipe.recipe import parse_recipe
from sslpipe.shards import open_manifest, read_index

from .conftest import RECIPE


def load(shards, *overrides, text=RECIPE, rank=0, world_size=1, **where):
    """A pipeline; without another `text` of a recipe one of two views at 32 px, batches of 8."""
    recipe = parse_recipe(text, path="test.yaml", overrides=overrides)
    return sslpipe.load(
        recipe, shards=shards, device="cpu", rank=rank, world_size=world_size, **where
    )


def trace(batches):
    """[{uid: (parameter tables, mask)}] per batch: all that is decided, without its order."""
    return [
        {
            int(uid): (
                batch.params["global"][:, b].numpy().tobytes(),
                batch.masks["random"][:, b].numpy().tobytes(),
            )
            for b, uid in enumerate(batch.uids)
        }
        for batch in batches
    ]


def steps(pipe, count):
    """The next `count` batches, over epochs' ends."""
    out = []
    while len(out) < count:
        for batch in pipe:
            out.append(batch)
            if len(out) == count:
                return out
    return out


def damage(folder, shard, row):
    """Flip one byte in the middle of a payload; returns its uid."""
    manifest = open_manifest(folder)
    path = manifest.root / manifest.shards[shard].file
    index = read_index(path)
    payload, data = index.payload(row), bytearray(path.read_bytes())
    data[payload.offset + payload.size // 2] ^= 0xFF
    path.write_bytes(data)
    return index.sample(row).uid
