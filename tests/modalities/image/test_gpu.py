"""What only a GPU can show of the executors, the tables and a long run."""

import gc

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe import philox
from sslpipe.device.ragged import Ragged
from sslpipe.modalities.image.executors import kornia, run_prepared
from sslpipe.modalities.image.gpu_decode import shrink
from sslpipe.recipe import parse_recipe

from ...conftest import RECIPE
from ...waiting import forbidden_to_wait
from .test_compiled import CHAINS, LEVEL, decided, photos

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def triton():
    """The executor."""
    pytest.importorskip("triton")
    from sslpipe.modalities.image.executors import triton

    return triton


@pytest.mark.parametrize("name", CHAINS)
def test_kornia_makes_the_same_views_on_both_devices(name):
    count, ops = CHAINS[name]
    group, table = decided(ops, photos(), count=count)
    views = kornia.execute(group, photos(), table, device=CUDA)
    want = kornia.execute(group, photos(), table, device=CPU)
    assert (views.cpu() - want).abs().max() < 0.05 * LEVEL


@pytest.mark.parametrize("name", CHAINS)
def test_triton_equals_kornia_on_cuda(name, triton):
    count, ops = CHAINS[name]
    group, table = decided(ops, photos(), count=count)
    assert not triton.unsupported(group)
    views = run_prepared(triton.prepare, group, photos(), table, device=CUDA)
    want = kornia.execute(group, photos(), table, device=CUDA)
    assert (views - want).abs().max() < 0.05 * LEVEL
    assert torch.equal(views, run_prepared(triton.prepare, group, photos(), table, device=CUDA))


def test_triton_takes_canvases_that_are_on_the_device(triton):
    count, ops = CHAINS["simclr"]
    group, table = decided(ops, photos(), count=count)
    there = [photo.to(CUDA) for photo in photos()]
    views = run_prepared(triton.prepare, group, there, table, device=CUDA)
    assert torch.equal(views, run_prepared(triton.prepare, group, photos(), table, device=CUDA))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_views_of_ragged_canvases_are_near_those_of_float32(triton, dtype):
    count, ops = CHAINS["simclr"]
    group, table = decided(ops, photos(), count=count)
    there = Ragged.of([photo.to(CUDA) for photo in photos()])
    views = run_prepared(triton.prepare, group, there, table, device=CUDA, dtype=dtype)
    want = kornia.execute(group, photos(), table, device=CUDA)
    assert views.dtype == dtype
    rounding = 2.5 * 2**-8 if dtype == torch.bfloat16 else 2.5 * 2**-11  # of values up to 2.7
    assert (views.float() - want).abs().max() < LEVEL / 0.224 + rounding


def test_lists_on_cuda_are_shrunk_as_one_by_one(triton):
    from sslpipe.modalities.image import gpu_shrink  # needs Triton

    planes = [photo.permute(2, 0, 1).to(CUDA) for photo in photos()]
    targets = [(20 + i, 30) for i in range(len(planes))]
    made = gpu_shrink.canvases(planes, targets)
    for canvas, plane, target in zip(made, planes, targets, strict=True):
        assert (canvas.int() - shrink(plane, target).int()).abs().max() <= 1
    assert gpu_shrink.extremes(planes) == [(int(p.min()), int(p.max())) for p in planes]


def test_triton_does_not_synchronise(triton):
    count, ops = CHAINS["simclr"]
    group, table = decided(ops, photos(), count=count)
    run_prepared(triton.prepare, group, photos(), table, device=CUDA)
    with forbidden_to_wait():
        run_prepared(triton.prepare, group, photos(), table, device=CUDA)


def test_a_captured_graph_of_triton_replays_the_same_bits(triton):
    count, ops = CHAINS["simclr"]
    group, table = decided(ops, photos(), count=count)
    make = triton.prepare(group, photos(), table, device=CUDA)
    want = make().clone()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        views = make()
    views.zero_()
    captured.replay()
    assert torch.equal(views, want)


def test_philox_gives_the_same_words_on_both_devices():
    counter = torch.randint(0, 1 << 32, (4, 4096), generator=torch.Generator().manual_seed(0))
    key = (torch.tensor(0x299F31D0), torch.tensor(0xA4093822))
    here = philox.philox_torch(tuple(counter), key)
    there = philox.philox_torch(tuple(counter.to(CUDA)), tuple(k.to(CUDA) for k in key))
    words = tuple(counter.numpy().astype(np.uint64))
    want = philox.philox(words, tuple(np.uint64(int(k)) for k in key))
    for a, b, c in zip(here, there, want, strict=True):
        assert torch.equal(a, b.cpu())
        assert np.array_equal(a.numpy().astype(np.uint64), c)


def run_of(packed, executor, device):
    recipe = parse_recipe(RECIPE, overrides=[f"run.executor={executor}"])
    with sslpipe.load(recipe, shards=packed, device=device, rank=0, world_size=1) as pipe:
        yield from pipe


@pytest.mark.parametrize(
    "executor", ["kornia", pytest.param("compiled", marks=pytest.mark.slow), "triton"]
)
def test_a_run_on_cuda_has_the_tables_and_pixels_of_a_run_on_the_cpu(packed, executor):
    pairs = zip(run_of(packed, executor, "cuda"), run_of(packed, "kornia", "cpu"), strict=True)
    for there, here in pairs:
        assert torch.equal(there.params["global"], here.params["global"])
        assert torch.equal(there.masks["random"].cpu(), here.masks["random"])
        assert torch.equal(there.labels.cpu(), here.labels)
        difference = (there.views["global"].cpu() - here.views["global"]).abs().max()
        assert difference < 0.2 * LEVEL / 0.224  # Normalize divides by it


@pytest.mark.slow
def test_ten_thousand_batches_take_no_more_memory_than_a_thousand(packed):
    recipe = parse_recipe(RECIPE, overrides=["run.executor=triton"])
    taken = []
    with sslpipe.load(recipe, shards=packed, device="cuda", rank=0, world_size=1) as pipe:
        while pipe.step < 10_000:
            for batch in pipe:
                assert batch.views["global"].shape[1] == 8
            if pipe.step % 1000 == 0:
                torch.cuda.synchronize()
                gc.collect()
                taken.append(torch.cuda.memory_reserved())
    assert len(taken) == 10
    assert max(taken) <= 1.1 * taken[0]
