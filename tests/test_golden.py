"""No batch changes unnoticed: every kind of stream gives the batches that are on record.

Keys, ids, order, parameter tables, masks and class ids bit for bit; pixels within rounding.
"""

import json

import numpy as np
import pytest

from .golden.streams import HERE, PIXELS, STEPS, STREAMS, records

# one process; two workers; three ranks with a worker each. Iterables are read where they are
CASES = [
    (name, world, workers)
    for name, stream in STREAMS.items()
    for world in stream.worlds
    for workers in ({0} if name == "foreign" else {0, 1 if world > 1 else 2})
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place for copies of the sample set."""
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize(("name", "world", "workers"), CASES, ids=str)
def test_batches_are_those_on_record(name, world, workers, folder):
    expected = json.loads((HERE / f"{name}.json").read_text())[str(world)]
    made = records(name, folder, world, workers)
    assert [row["exact"] for row in made] == [row["exact"] for row in expected]
    for now, then in zip(made, expected, strict=True):
        assert now["pixels"].keys() == then["pixels"].keys()
        for group, sums in then["pixels"].items():
            np.testing.assert_allclose(now["pixels"][group], sums, rtol=0, atol=PIXELS)

    assert len(made) == 2 * STEPS * world
