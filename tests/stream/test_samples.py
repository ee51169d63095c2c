"""The stream alone: checked bytes in the pipeline's order, elastic, without torch."""

import subprocess
import sys

import pytest

import sslpipe.stream
from sslpipe.errors import RecipeError, SampleError, StateError

from ..conftest import ROOT
from ..streaming import damage, load

WITHOUT = """
import sys
import sslpipe.stream
with sslpipe.stream.open(sys.argv[1], batch_size=8) as samples:
    print(sum(len(sample.data) for batch in samples for sample in batch))
assert not {"torch", "kornia", "numba", "numpy.ma"} & set(sys.modules), sorted(sys.modules)
"""
WITH_JAX = """
import io, sys
import jax, jax.numpy as jnp, numpy as np
from PIL import Image
import sslpipe.stream

def pixels(sample):
    return np.asarray(Image.open(io.BytesIO(sample.data)).resize((16, 16)), np.float32)

with sslpipe.stream.open(sys.argv[1], batch_size=8) as samples:
    for batch in samples:
        images = jnp.stack([pixels(sample) for sample in batch])
        means = jax.jit(lambda x: x.mean((1, 2, 3)))(images)
        assert np.allclose(means, np.asarray(images).mean((1, 2, 3)), rtol=1e-5)
assert "torch" not in sys.modules
print(len(samples), means.shape)
"""


def run(script, packed):
    done = subprocess.run(
        [sys.executable, "-c", script, packed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def uids(samples, count):
    found = []
    while len(found) < count:
        found += [[sample.uid for sample in batch] for batch in samples]
    return found[:count]


def test_no_torch_is_imported(packed):
    assert int(run(WITHOUT, packed)[0]) > 10_000


def test_jax_takes_the_bytes(packed):
    assert run(WITH_JAX, packed) == ["5", "(8,)"]


@pytest.mark.parametrize("order", ["lanes", "global", "sequential"])
def test_samples_are_the_pipelines(packed, order):
    remainder = "drop" if order == "sequential" else "wrap"
    with (
        sslpipe.stream.open(packed, batch_size=8, seed=3, order=order, remainder=remainder) as raw,
        load(
            packed, "stream.seed=3", f"stream.order={order}", f"stream.remainder={remainder}"
        ) as pipe,
    ):
        for batch, samples in zip(pipe, raw, strict=True):
            assert batch.uids.tolist() == [sample.uid for sample in samples]
            assert batch.keys == tuple(sample.key for sample in samples)
            assert batch.labels.tolist() == [sample.label for sample in samples]


def test_it_goes_on_on_other_ranks(packed):
    with sslpipe.stream.open(packed, batch_size=8) as one:
        whole = uids(one, 10)
    with sslpipe.stream.open(packed, batch_size=8, rank=0, world_size=1) as first:
        assert uids(first, 5) == whole[:5]
        state = first.state_dict()
    ranks = []
    for rank in range(2):
        with sslpipe.stream.open(packed, batch_size=8, rank=rank, world_size=2) as half:
            half.load_state_dict(state)
            ranks.append(uids(half, 5))
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(b) for b in whole[5:]]


def test_all_members_come_with_a_sample(packed):
    with sslpipe.stream.open(packed, batch_size=8) as samples:
        sample = next(iter(samples))[0]
        assert sample.members["jpg"] == sample.data
        assert samples.classes[int(sample.members["cls"])] == samples.classes[sample.label]


def test_a_bad_sample_is_replaced_or_raised(packed, tmp_path):
    import shutil

    copied = shutil.copytree(packed, tmp_path / "damaged")
    bad = damage(copied, 0, 1)
    with sslpipe.stream.open(copied, batch_size=8) as samples, load(copied) as pipe:
        found = uids(samples, 5)
        assert found == [batch.uids.tolist() for batch in pipe]
        assert bad not in {uid for batch in found for uid in batch}
    with (
        sslpipe.stream.open(copied, batch_size=8, on_bad="raise") as samples,
        pytest.raises(SampleError, match="does not have the CRC32 of the index"),
    ):
        uids(samples, 5)


def test_mistakes_are_told(packed):
    with pytest.raises(RecipeError, match=r"stream.batch_size = 0"):
        sslpipe.stream.open(packed, batch_size=0)
    with pytest.raises(RecipeError, match="100 is more than the shards have"):
        sslpipe.stream.open(packed, batch_size=100)
    with sslpipe.stream.open(packed, batch_size=8) as samples:
        with pytest.raises(StateError, match="its step is None"):
            samples.load_state_dict({})
        with (
            sslpipe.stream.open(packed, batch_size=8, seed=1) as other,
            pytest.raises(StateError, match="its recipe was"),
        ):
            samples.load_state_dict(other.state_dict())
