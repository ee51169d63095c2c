"""The one fence around torch's global generators, for dropout, drop path and initial weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .. import rng


@contextmanager
def keyed(
    purpose: str, *, seed: int, step: int = 0, rank: int = 0, device: torch.device | None = None
) -> Iterator[None]:
    """Inside, the global generators are a function of the arguments; outside, nothing happened.

    So a resumed run drops what the uninterrupted one would have dropped, and no generator state
    needs to be saved. Costs some 30 us; torch.manual_seed would cost ten times that.
    """
    words = rng.words(2, seed=seed, epoch=step, stream=purpose, ids=np.int64(rank))
    key = int(words[0]) << 32 | int(words[1])
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(key)
        if cuda:
            torch.cuda.manual_seed(key)
        yield
