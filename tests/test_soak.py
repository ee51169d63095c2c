"""A long run on the CPU: memory and threads stay what they were."""

import gc
import threading
import tracemalloc

import sslpipe
from sslpipe.recipe import parse_recipe

from .conftest import RECIPE


def test_300_batches_hold_no_more_memory_and_threads_than_120(packed):
    ops = "[{RandomResizedCrop: {size: [16, 16]}}, RandomHorizontalFlip, Normalize]"
    settings = ["run.executor=kornia", "stream.batch_size=2", f"views.global.ops={ops}"]
    recipe = parse_recipe(RECIPE, overrides=settings)
    held, threads = [], []
    with sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        tracemalloc.start()
        try:
            for _ in range(5):
                end = pipe.step + 60
                while pipe.step < end:
                    next(iter(pipe))
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
                threads.append(threading.active_count())
        finally:
            tracemalloc.stop()
    assert len(set(threads)) == 1
    # bytes, over 180 batches; before, more and more steps are planned together
    assert held[-1] - held[1] < 100_000
