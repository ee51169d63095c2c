"""No batch changes unnoticed: every kind of stream gives the batches that are on record.

Keys, ids, order, parameter tables, masks and class ids bit for bit; pixels within rounding.
"""

import json

import numpy as np
import pytest

from .golden.streams import HERE, PIXELS, STEPS, STREAMS, records

# number of ranks -> workers of each: with and without, side by side. Iterables are read in place
WORKERS = {1: [(0,), (2,)], 3: [(0, 1, 0)]}
CASES = [
    (name, workers)
    for name, stream in STREAMS.items()
    for world in stream.worlds
    for workers in ([(0,) * world] if name == "foreign" else WORKERS[world])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place for copies of the sample set."""
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize(("name", "workers"), CASES, ids=str)
def test_batches_are_those_on_record(name, workers, folder):
    world = len(workers)
    expected = json.loads((HERE / f"{name}.json").read_text())[str(world)]
    made = records(name, folder, workers)
    assert [row["exact"] for row in made] == [row["exact"] for row in expected]
    for now, then in zip(made, expected, strict=True):
        assert now["pixels"].keys() == then["pixels"].keys()
        for group, sums in then["pixels"].items():
            np.testing.assert_allclose(now["pixels"][group], sums, rtol=0, atol=PIXELS)

    assert len(made) == 2 * STEPS * world
