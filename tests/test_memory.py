"""What a run needs is estimated and what cannot fit is refused, before work begins."""

import pytest
import torch

from sslpipe import load, memory, step_memory
from sslpipe.bench import measure
from sslpipe.device.slots import PAGE
from sslpipe.encoders import build_encoder
from sslpipe.errors import RecipeError
from sslpipe.memory import check_memory, estimate, free_host, group_free, sized, view_bytes
from sslpipe.methods import build_method
from sslpipe.recipe import Entry, load_recipe, parse_recipe
from sslpipe.step_memory import (
    LiveBytes,
    kept_by,
    kept_bytes,
    making_bytes,
    small_batch,
    step_bytes,
)
from sslpipe.train import initial_method

from .cli.test_commands import TRAINABLE
from .modalities.audio import sounds


@pytest.fixture
def pipe(recipe, packed):
    with load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        yield pipe


def method_of(pipe):
    backbone = Entry("cifar_resnet", {"width": 8, "blocks": [1, 1, 1, 1]})
    encoder = build_encoder(backbone, pipe.spec.views["global"])
    return build_method(Entry("simclr", {"projector": [16, 8]}), encoder, pipe.spec)


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
        shares = estimate(pipe, None).host - (prefetch + 1) * view_bytes(pipe.spec)
        shares /= memory.share_bytes(pipe)
        for _ in range(3):
            next(iter(pipe))
            with pipe.resting():  # all is made that is made ahead
                pass
        slots = pipe.loading.slots.bytes / PAGE  # arrays are small: each slot takes one page
    assert 1 <= slots <= shares <= prefetch + 3


def test_the_step_is_tried_on_a_copy_and_no_generator_moves(pipe):
    method = method_of(pipe)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    need = estimate(pipe, method)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    assert need.step > estimate(pipe, None).step == 0


def test_what_backward_keeps_is_counted_once():
    layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    floats = 2 * (8 + 16)  # the input, and the output of ReLU, kept by two
    assert kept_by(layers, lambda: layers(torch.zeros(2, 8))) == 4 * floats


def test_the_step_of_a_batch_is_that_of_a_few_samples_drawn_out(pipe):
    """All that the few lack are the pairs of a batch: SimCLR's logits, 16 x 16 twice or thrice."""
    method = method_of(pipe)
    batch = pipe.make_batch(pipe.load_share(0), 0)
    gradients = step_memory.COPIES * sum(p.nbytes for p in method.parameters())
    whole = step_memory.ON_THE_WAY * kept_bytes(method, batch, low=False) + gradients
    assert step_bytes(pipe, method) == pytest.approx(whole, abs=10 * 4 * 16**2)


def test_rows_of_text_are_tried_with_their_heads(texts):
    with load("gpt_bytes", shards=texts, device="cpu", rank=0, world_size=1) as pipe:
        batch = small_batch(pipe, 2)
        assert len(batch.uids) == 2
        method = initial_method(pipe.recipe, pipe.spec)
        batch = pipe.make_batch(pipe.load_share(0), 0)
        whole = step_memory.ON_THE_WAY * kept_bytes(method, batch, low=False)
        gradients = step_memory.COPIES * sum(p.nbytes for p in method.parameters())
        assert step_bytes(pipe, method) == pytest.approx(whole + gradients, rel=0.02)


def test_tensors_count_while_they_live_and_those_that_were_there_never():
    given = torch.zeros(1000)
    with LiveBytes() as live:
        half = given[:500]
        made = half + 1  # 2,000 bytes
        seen = made[:10]
        del made
        assert live.now == 2000
        other = seen.repeat(100) * 2  # 4,000 bytes, twice
        del seen, half
        assert live.now == 4000
    assert live.most == 2000 + 2 * 4000
    assert len(other) == 1000


@pytest.mark.parametrize("count", [64, 256])
def test_waves_partners_and_spectrograms_count_while_a_batch_is_made(tmp_path, count):
    """BYOL-A's: of a batch views take a tenth of it."""
    overrides = [f"stream.batch_size={count}", "stream.allow_repeats=true", "run.workers=0"]
    recipe = load_recipe("byol_a", overrides=overrides)
    files = {f"s{n}.flac": sounds.encoded(sounds.chirp(1.0, seed=n)) for n in range(4)}
    shards = sounds.packed(tmp_path / "in", tmp_path / "out", files)
    with load(recipe, shards=shards, device="cpu", rank=0, world_size=1) as pipe:
        with LiveBytes() as live:
            pipe.make_batch(pipe.load_share(0), 0)
        assert live.most > 5 * view_bytes(pipe.spec)
        whole = step_memory.ON_THE_WAY * live.most
        assert making_bytes(pipe) == pytest.approx(whole, rel=0.2)


def test_what_cannot_be_tried_is_left_out(pipe):
    assert step_bytes(pipe, torch.nn.Linear(2, 2)) == 0


def test_sizes_are_said_in_what_people_read():
    assert [sized(n) for n in (0, 57_600_000, 1_340_000_000)] == ["0 MB", "58 MB", "1.3 GB"]


def test_data_that_cannot_fit_is_refused_with_numbers_and_a_remedy(pipe, monkeypatch):
    monkeypatch.setattr(memory, "free_host", lambda: 100_000)
    with pytest.raises(RecipeError, match=r"100 kB free; set a smaller stream\.batch_size"):
        check_memory(pipe)


def test_what_is_close_is_warned_of(pipe, monkeypatch):
    total = (need := estimate(pipe, method_of(pipe))).host + need.work
    for free, told in (
        (total, "is close to all that is free, and the system may kill"),
        (total - 1, "is more than is free, and the system may kill"),
        (2 * total, ""),
    ):
        monkeypatch.setattr(memory, "free_host", lambda free=free: free)
        found = check_memory(pipe, method_of(pipe))
        assert "are free" in found.line
        assert found.fits == (free >= total)
        assert told in found.warning
        assert bool(told) == ("a smaller backbone" in found.warning)


def test_a_step_that_does_not_fit_is_not_measured(packed, monkeypatch):
    """The system would kill the process, and with it all that was measured."""
    recipe = parse_recipe(TRAINABLE, path="test.yaml")
    with load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        data = estimate(pipe, None).host
    monkeypatch.setattr(memory, "free_host", lambda: data)
    said, begun = [], []
    stages = measure(
        recipe, shards=packed, device="cpu", seconds=0.01, say=said.append, begin=begun.append
    )
    assert stages.step is stages.step_beside is None
    assert stages.end_to_end == stages.pipeline > 0
    assert begun == ["read", "decode", "decide", "make", "augment", "pipeline"]
    assert "step is left out" in said[1]
    assert "set a smaller stream.batch_size" in said[1]
    assert not any("may kill" in text for text in said)


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
        check_memory(pipe)
