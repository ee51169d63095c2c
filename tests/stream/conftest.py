"""Packed series of numbers, for decoders that get into trouble."""

import numpy as np
import pytest

from sslpipe.shards import PackSettings, pack
from tests.modalities.toy import SeriesCodec

SERIES = 48


@pytest.fixture(scope="session")
def series(tmp_path_factory):
    """48 series, (2, T) each, T between 40 and 90 steps, in a few shards; key: 00 to 47."""
    folder, rng = tmp_path_factory.mktemp("series"), np.random.default_rng(0)
    for number in range(SERIES):
        rows = rng.normal(size=(2, rng.integers(40, 90))).astype(np.float32)
        np.save(folder / f"{number:02d}.npy", rows)
    out = tmp_path_factory.mktemp("shards") / "series"
    pack(folder, out, PackSettings(codec=SeriesCodec(), shard_samples=10))
    return out
