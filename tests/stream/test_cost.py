"""What the main process does for a sample beside workers: counted, so that no clock decides."""

import sys

import numpy as np
import pytest
from PIL import Image

import sslpipe
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack

from .scripts_pipe import dicts

RECIPE = """
stream: {batch_size: 64, order: global}
views: {global: {ops: [RandomCrop: {size: [32, 32], padding: 4}]}}
run: {workers: 1, prefetch: 0, threads: 1}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """1,024 JPEGs of 32 px."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for i in range(1024):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.jpg")
    out = tmp_path_factory.mktemp("shards") / "small"
    pack(folder, out, PackSettings(codec=ImageCodec(), shard_bytes=200_000))
    return out


def calls_of(work):
    """How many functions, of Python and of C, this thread enters."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def calls_a_batch(shards, batch_size):
    """Calls to load one share, once everything is warm; the least of three."""
    recipe = parse_recipe(RECIPE, path="t.yaml", overrides=[f"stream.batch_size={batch_size}"])
    with sslpipe.load(recipe, shards=shards, device="cpu") as pipe:
        pipe.loading.load(0)
        return min(calls_of(lambda step=step: pipe.loading.load(step)) for step in (1, 2, 3))


def test_a_sample_more_is_a_few_calls_more(small):
    """4 us a sample are some forty calls: one loop over samples too many is seen here."""
    few, many = (calls_a_batch(small, size) for size in (64, 256))
    each = (many - few) / (256 - 64)
    assert few > 100  # they are counted
    assert each < 1  # 0 now that keys are decoded at once, 1.1 before


def test_a_sample_more_of_an_iterable_is_as_few(small):
    """Looking at what it gave and hashing its key: nothing of decoding."""
    shards = dicts(small)
    few, many = (calls_a_batch(shards, size) for size in (64, 256))
    assert (many - few) / (256 - 64) < 50  # 35; 25 are for the dict, 5 for its label
