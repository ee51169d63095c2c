"""What a run needs is estimated and what cannot fit is refused, before work begins."""

import logging

import pytest
import torch

from sslpipe import load, memory
from sslpipe.device.slots import PAGE
from sslpipe.encoders import build_encoder
from sslpipe.errors import RecipeError
from sslpipe.memory import check, estimate, free_host, group_free, kept_bytes, view_bytes
from sslpipe.recipe import Entry


@pytest.fixture
def pipe(recipe, packed):
    with load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        yield pipe


def encoder_of(pipe):
    backbone = Entry("cifar_resnet", {"width": 8, "blocks": [1, 1, 1, 1]})
    return build_encoder(backbone, pipe.spec.views["global"])


def test_views_and_canvases_are_those_of_a_batch(pipe):
    batch = pipe.make_batch(pipe.load_share(0), 0)
    assert view_bytes(pipe.spec) == batch.views["global"].nbytes
    assert memory.share_bytes(pipe) == sum(
        array.nbytes for array in pipe.load_share(0).columns[0].arrays
    )


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_no_more_shares_are_held_than_counted(recipe, packed, prefetch):
    run = recipe.run.model_copy(update={"workers": 1, "prefetch": prefetch})
    changed = recipe.model_copy(update={"run": run})
    with load(changed, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        shares = estimate(pipe, None).host - (prefetch + 2) * view_bytes(pipe.spec)
        shares /= memory.share_bytes(pipe)
        for _ in range(3):
            next(iter(pipe))
            with pipe.resting():  # all is made that is made ahead
                pass
        slots = pipe.loading.slots.bytes / PAGE  # arrays are small: each slot takes one page
    assert 1 <= slots <= shares <= prefetch + 3


def test_the_step_is_tried_on_a_copy_and_no_generator_moves(pipe):
    encoder = encoder_of(pipe)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    need = estimate(pipe, encoder)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert need.step > estimate(pipe, None).step == 0


def test_what_backward_keeps_is_counted_once():
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    floats = memory.TRIED * (8 + 16)  # the input, and the output of ReLU, kept by two
    assert kept_bytes(layers, (8,), low=False) == 4 * floats


def test_data_that_cannot_fit_is_refused_with_numbers_and_a_remedy(pipe, monkeypatch):
    monkeypatch.setattr(memory, "free_host", lambda: 100_000)
    with pytest.raises(RecipeError, match=r"0\.0 GB free; set a smaller stream\.batch_size"):
        check(pipe)


def test_what_is_close_is_warned_of(pipe, monkeypatch, caplog):
    need = estimate(pipe, encoder_of(pipe))
    monkeypatch.setattr(memory, "free_host", lambda: need.host + need.step)
    with caplog.at_level(logging.WARNING):
        check(pipe, encoder_of(pipe))
    assert "is close to all that is free, and the system may kill" in caplog.text
    monkeypatch.setattr(memory, "free_host", lambda: 2 * (need.host + need.step))
    caplog.clear()
    assert "GB free" in check(pipe, encoder_of(pipe)).line
    assert not caplog.text


def test_the_limit_of_a_control_group_counts(tmp_path):
    group = tmp_path / "sys/fs/cgroup/jobs/mine"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/mine\n")
    for folder, limit in ((group, "max"), (group.parent, "5000")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert min(group_free(tmp_path)) == 2500
    assert not list(group_free(tmp_path / "nowhere"))
    assert free_host() is None or free_host() > 0


def test_too_few_open_files_are_told_with_the_number(pipe, monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (32, 32))
    with pytest.raises(RecipeError, match=r"open files, and this process may have 32; run `ulimit"):
        check(pipe)
