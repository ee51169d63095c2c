"""What the scripts of `test_worker_scripts.py` share: a pipeline with two workers."""

import sys

import sslpipe
from sslpipe.recipe import parse_recipe
from tests.conftest import RECIPE


def opened(**where):
    """Over the shards that the script was called with."""
    recipe = parse_recipe(RECIPE, overrides=["run.workers=2"])
    return sslpipe.load(recipe, shards=sys.argv[1], device="cpu", **where)


def uids(pipe):
    """Of an epoch, as a list of numbers in their order."""
    return [int(uid) for batch in pipe for uid in batch.uids]
