"""The pipeline: elastic, exact, replayable, and loud about bad data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.errors import RecipeError, ShardError, StateError
from sslpipe.recipe import parse_recipe
from sslpipe.shards import open_manifest, read_index

from .conftest import RECIPE
from .streaming import load, steps, trace


@pytest.fixture(scope="module")
def reference(packed):
    with load(packed) as pipe:
        return trace(steps(pipe, 17))  # three epochs of 5 batches, and more


def test_batches_honour_the_spec(packed):
    with load(packed) as pipe:
        assert len(pipe) == 45 // 8
        batches = list(pipe)
    assert len(batches) == len(pipe)
    for step, batch in enumerate(batches):
        assert batch.step == step
        assert batch.views["global"].shape == (2, 8, 3, 32, 32)
        assert batch.views["global"].dtype == torch.float32
        assert batch.params["global"].shape == (2, 8, len(pipe.spec.views["global"].columns))
        assert batch.masks["random"].sum(-1).eq(pipe.spec.masks["random"].hidden).all()
        assert pipe.spec.epoch_size == 8 * len(pipe)
        assert len(set(batch.keys)) == 8
        for key, label in zip(batch.keys, batch.labels.tolist(), strict=True):
            assert key.startswith(f"class{label}/")
    assert not torch.equal(batches[0].views["global"][0], batches[0].views["global"][1])


def test_every_epoch_sees_every_sample_once(packed):
    with load(packed) as pipe:
        uids = torch.cat([batch.uids for batch in steps(pipe, 45)])  # 8 epochs of 45
    for epoch in uids.reshape(8, 45):
        assert len(set(epoch.tolist())) == 45


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_number_of_ranks_changes_nothing(packed, reference, world_size):
    joined = [{} for _ in reference]
    for rank in range(world_size):
        with load(packed, rank=rank, world_size=world_size) as pipe:
            assert pipe.spec.size == 8 // world_size
            assert len(pipe) == 5
            for whole, part in zip(joined, trace(steps(pipe, 17)), strict=True):
                whole |= part
    assert joined == reference


def test_speed_settings_change_nothing_not_even_pixels(packed):
    runs = []
    for threads, prefetch in ((1, 0), (2, 2), (5, 1)):
        with load(packed, f"run.threads={threads}", f"run.prefetch={prefetch}") as pipe:
            runs.append(list(pipe))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert a.keys == b.keys
            assert torch.equal(a.views["global"], b.views["global"])
            assert torch.equal(a.params["global"], b.params["global"])


def test_a_known_end_changes_no_batch_and_nothing_behind_it_is_loaded(packed, reference):
    recipe = parse_recipe(RECIPE)
    with sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1, epochs=1) as pipe:
        begun, submit = [], pipe.loading._loader.submit
        pipe.loading._loader.submit = lambda step, kind: begun.append(step) or submit(step, kind)
        first = trace(list(pipe))
        assert begun == list(range(5))
        assert first + trace(steps(pipe, 12)) == reference  # whoever asks for more gets it


CHILD = textwrap.dedent("""
    import json, os, sys, time
    import sslpipe
    recipe, shards, state = sys.argv[1:]
    pipe = sslpipe.load(recipe, shards=shards, device="cpu")
    while True:
        for batch in pipe:
            with open(state + ".part", "w") as file:
                json.dump(pipe.state_dict(), file)
            os.replace(state + ".part", state)
            time.sleep(0.05 if pipe.step < 12 else 60)  # steps to compare are left however late
""")


def test_killed_mid_epoch_and_resumed_on_other_ranks_and_threads(packed, reference, tmp_path):
    recipe, state = tmp_path / "recipe.yaml", tmp_path / "state.json"
    recipe.write_text(RECIPE)
    child = subprocess.Popen([sys.executable, "-c", CHILD, recipe, packed, state])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if state.exists() and json.loads(state.read_text())["step"] % 5 in (2, 3):
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    saved = json.loads(state.read_text())
    assert len(state.read_bytes()) < 250
    done = saved["step"]
    assert 0 < done < 14
    joined = [{} for _ in reference[done:]]
    for rank in range(2):
        with load(packed, "run.threads=1", "run.prefetch=0", rank=rank, world_size=2) as pipe:
            pipe.load_state_dict(saved)
            for whole, part in zip(joined, trace(steps(pipe, 17 - done)), strict=True):
                whole |= part
    assert joined == reference[done:]


def test_state_counts_batches_handed_out_and_resumes_inside_an_epoch(packed, reference):
    with load(packed) as pipe:
        iterator = iter(pipe)
        first = [next(iterator), next(iterator)]
        state = pipe.state_dict()
        assert state["step"] == 2
    with load(packed) as pipe:
        pipe.load_state_dict(state)
        rest = list(pipe)
        assert len(rest) == len(pipe) - 2
    assert trace(first + rest) == reference[:5]


def test_going_back_in_time_is_exact_too(packed, reference):
    with load(packed) as pipe:
        start = pipe.state_dict()
        steps(pipe, 3)
        pipe.load_state_dict(start)
        assert trace(steps(pipe, 4)) == reference[:4]


def test_a_batch_can_be_made_again_from_its_place(packed):
    with load(packed) as pipe:
        batch = steps(pipe, 8)[-1]
        again = pipe.make_batch(pipe.load_share(batch.step), batch.step)
    assert torch.equal(batch.views["global"], again.views["global"])


def test_states_of_other_shards_or_recipes_are_refused(packed, sample):
    with load(packed) as pipe:
        state = pipe.state_dict()
    with load(sample) as other, pytest.raises(StateError, match="its shards or their weights was"):
        other.load_state_dict(state)
    with load(packed, "stream.seed=1") as other, pytest.raises(StateError, match="its recipe"):
        other.load_state_dict(state)
    with load(packed, "run.threads=7") as other:
        other.load_state_dict(state)


LAUNCHED = [
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
    {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    {"PMI_SIZE": "2", "PMI_RANK": "1"},
    {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"},
]
ALONE = [
    {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    {"SLURM_NTASKS": "8"},  # a shell of salloc
    {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty
    {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "RANK": "0", "WORLD_SIZE": "1"},
]


@pytest.mark.parametrize("environ", LAUNCHED)
def test_ranks_that_nobody_told_torch_of_are_refused(packed, monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=r"started . processes .*; start with torchrun"):
        load(packed, rank=None, world_size=None)
    with load(packed, rank=1, world_size=2) as pipe:
        assert (pipe.rank, pipe.world_size) == (1, 2)


@pytest.mark.parametrize("environ", ALONE)
def test_a_process_that_is_alone_under_a_launcher_may_load(packed, monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with load(packed, rank=None, world_size=None) as pipe:
        assert (pipe.rank, pipe.world_size) == (0, 1)


def test_ranks_must_divide_the_batch(packed):
    with pytest.raises(RecipeError, match="not divisible by the 3 ranks; choose a multiple of 3"):
        load(packed, world_size=3)
    with pytest.raises(RecipeError, match="rank = 4"):
        load(packed, rank=4, world_size=4)


def test_a_cut_shard_is_refused_before_anything_is_read(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    path = folder / open_manifest(folder).shards[0].file
    path.write_bytes(path.read_bytes()[:-2048])
    with pytest.raises(ShardError, match="cut"):
        load(folder)


def test_images_of_any_kind_do_not_touch_the_callers_random_state(packed):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    with load(packed) as pipe:
        list(pipe)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_sequential_order_yields_every_sample_once_in_packed_order(packed):
    with load(packed, "stream.order=sequential") as pipe:
        batches = list(pipe)
    assert [len(batch.keys) for batch in batches] == [8, 8, 8, 8, 8, 5]
    manifest = open_manifest(packed)
    paths = [manifest.root / shard.file for shard in manifest.shards]
    want = np.concatenate([read_index(path).samples["uid"] for path in paths])
    assert torch.cat([batch.uids for batch in batches]).tolist() == want.tolist()


GARBAGE = [None, -5, 10**9 + 0.5, 10**12, "3", True, np.int64(3), torch.tensor(3), [3]]


@pytest.mark.parametrize("step", GARBAGE)
def test_a_state_whose_step_is_no_count_is_refused(packed, step):
    with load(packed) as pipe:
        with pytest.raises(StateError, match=r"stream state: its step is .*pass what state_dict"):
            pipe.load_state_dict({**pipe.state_dict(), "step": step})
        assert pipe.step == 0


@pytest.mark.parametrize("state", [None, [], "state", 7, {}])
def test_what_is_no_state_is_refused(packed, state):
    with load(packed) as pipe, pytest.raises(StateError, match="its step is None"):
        pipe.load_state_dict(state)


@pytest.mark.parametrize("value", [np.arange(3), torch.ones(2), None, {"a": 1}])
@pytest.mark.parametrize("name", ["version", "manifest", "order", "recipe"])
def test_a_state_of_other_types_is_refused(packed, name, value):
    with load(packed) as pipe, pytest.raises(StateError, match=r"stream state: its .* was"):
        pipe.load_state_dict({**pipe.state_dict(), "step": 10**9, name: value})


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_closed_pipeline_says_so(packed, prefetch):
    with load(packed, f"run.prefetch={prefetch}") as pipe:
        batches = iter(pipe)
        kept = next(batches)
        share, state = pipe.load_share(1), pipe.state_dict()
    uses = [
        lambda: next(batches),
        lambda: next(iter(pipe)),
        lambda: pipe.load_share(1),
        lambda: pipe.make_batch(share, 1),
        lambda: pipe.load_state_dict(state),
    ]
    for use in uses:
        with pytest.raises(
            StateError, match=r"test.yaml: the pipeline is closed; load it once more"
        ):
            use()
    pipe.close()
    assert pipe.state_dict() == state
    assert kept.views["global"].isfinite().all()
