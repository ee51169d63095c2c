"""What the scripts of `test_worker_scripts.py` share: a pipeline with two workers."""

import sys
import tarfile
from pathlib import Path

import sslpipe
from sslpipe.recipe import parse_recipe
from tests.conftest import RECIPE


def opened(*, as_dicts=False):
    """Over the shards that the script was called with, or over an iterable of their samples."""
    recipe = parse_recipe(RECIPE, overrides=["run.workers=2"])
    shards = dicts(sys.argv[1]) if as_dicts else sys.argv[1]
    return sslpipe.load(recipe, shards=shards, device="cpu")


def dicts(folder):
    """The pictures of some shards, as an iterable gives them."""
    found = []
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ext = member.name.partition(".")
                if ext == "jpg":
                    found.append({"__key__": key, ext: tar.extractfile(member).read()})
    return found


def uids(pipe):
    """Of an epoch, as a list of numbers in their order."""
    return [int(uid) for batch in pipe for uid in batch.uids]
