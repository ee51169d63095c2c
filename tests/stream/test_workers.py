"""Workers change nothing that is in a batch, whatever happens to them or in them."""

import json
import os
import random
import re
import shutil
import signal
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import sslpipe
from sslpipe.errors import RecipeError, SampleError, ShardError, SslpipeError, StateError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe import find_recipe, load_recipe, parse_recipe
from sslpipe.shards import PackSettings, open_manifest, pack
from sslpipe.stream.tasks import KEY_BYTES
from tests.golden.streams import STREAMS, shards_of
from tests.modalities.test_toy import TWO
from tests.modalities.toy import SeriesCodec
from tests.servers import serve
from tests.streaming import load, steps

from . import crashing
from .crashing import TroubledDecode
from .troubled import RECIPE, TroubledModality


def same(one, other):
    """Whether two batches are equal bit for bit."""
    assert (one.step, one.epoch, one.keys) == (other.step, other.epoch, other.keys)
    mine, theirs = ([*b.tensors, *b.params.values(), b.uids, b.valid] for b in (one, other))
    assert len(mine) == len(theirs) > 3
    for x, y in zip(mine, theirs, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def open_stream(name, folder, workers, rank=0, world_size=1):
    """A stream of the golden ones."""
    stream = STREAMS[name]
    overrides = *stream.overrides, f"run={{executor: kornia, prefetch: 1, workers: {workers}}}"
    return sslpipe.load(
        load_recipe(find_recipe(stream.recipe), overrides=overrides),
        shards=shards_of(stream.shards, folder, rank, world_size),
        device="cpu",
        rank=rank,
        world_size=world_size,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place for copies of the sample set."""
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize(
    ("name", "workers", "world_size"),
    [
        ("replace", 3, 1),
        ("replace", 1, 3),
        ("mask", 2, 1),
        ("exclude", 2, 2),
        ("mixture", 3, 1),
        ("mixture", 1, 2),
        ("multicrop", 2, 1),
        ("simclr_lanes", 2, 3),
    ],
)
def test_the_number_of_workers_changes_nothing(name, workers, world_size, folder):
    for rank in range(world_size):
        with (
            open_stream(name, folder, 0, rank, world_size) as plain,
            open_stream(name, folder, workers, rank, world_size) as pipe,
        ):
            assert len(pipe.loading.crew.pids) <= workers
            for one, other in zip(steps(pipe, 4), steps(plain, 4), strict=True):
                same(one, other)
            assert pipe.replaced == plain.replaced


def test_a_resume_and_a_jump_to_any_step(series):
    with troubled(series, workers=0) as plain:
        truth = steps(plain, 11)
    with troubled(series, "run.prefetch=2") as pipe:
        for batch, other in zip(steps(pipe, 3), truth, strict=False):
            same(batch, other)
        state = pipe.state_dict()
        for step in (9, 2, 5, 3):
            pipe.load_state_dict({**state, "step": step})
            for batch, other in zip(steps(pipe, 2), truth[step:], strict=False):
                same(batch, other)
    with troubled(series) as pipe:
        pipe.load_state_dict(state)
        same(next(iter(pipe)), truth[3])


def troubled(shards, *overrides, workers=2, decode=None, **where):
    """A pipeline of series, with a decoder of one's choice."""
    TroubledModality.chosen = decode or TroubledDecode()
    recipe = parse_recipe(RECIPE, path="t.yaml", overrides=[f"run.workers={workers}", *overrides])
    return sslpipe.load(recipe, shards=shards, device="cpu", **where)


def killed_without_a_change(source, count):
    """The workers that were killed in so many steps, of which each is as without workers."""
    decode, rng = TroubledDecode(crashing.doze), random.Random(0)
    with troubled(source, workers=0) as plain:
        truth = steps(plain, count)
    killed = set()
    with troubled(source, "run.prefetch=2", workers=3, decode=decode) as pipe:
        for step in range(count):
            same(steps(pipe, 1)[0], truth[step])
            time.sleep(rng.uniform(0, 0.02))
            victims = pipe.loading.crew.pids[:2]  # the oldest, which are at work by now
            if victims:
                victim = rng.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
        assert pipe.replaced == 0
    return killed


def test_workers_that_are_killed_change_nothing(series):
    assert len(killed_without_a_change(series, 40)) >= 20


# samples that do something to their worker


TROUBLES = {
    crashing.crash: r"crashed the decoder \(signal 11, SIGSEGV\)",
    crashing.leave: r"ended the decoder's process \(exit code 3\)",
    crashing.hang: r"held a worker for more than 1 s",
    crashing.refuse: r"is not liked",
}


def test_a_sample_that_crashes_the_decoder_is_replaced_and_written_down(series, tmp_path):
    log = tmp_path / "q.jsonl"
    decode = TroubledDecode(crashing.crash, {"07"})
    refused = TroubledDecode(crashing.refuse, {"07"})
    words = ("stream.on_bad=exclude",)
    with troubled(series, *words, workers=0, decode=refused) as plain:
        truth = steps(plain, 5)
    with troubled(series, *words, decode=decode, quarantine=log) as pipe:
        for one, other in zip(steps(pipe, 5), truth, strict=True):
            same(one, other)
        assert pipe.replaced >= 1
    (row,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert row["key"] == "07"
    assert re.search(TROUBLES[crashing.crash], row["reason"])
    assert isinstance(row["uid"], int)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_a_decoder_does_to_its_worker_is_the_samples_fault(series, trouble):
    decode = TroubledDecode(trouble, {"03", "21"})
    with troubled(series, workers=0) as plain:
        truth = steps(plain, 4)
    words = "run.patience=1", "stream.on_bad=mask", "stream.batch_size=12"
    with troubled(series, *words, decode=decode) as pipe:
        masked = []
        for one, other in zip(steps(pipe, 4), truth, strict=True):
            assert one.keys == other.keys
            good = one.valid
            assert torch.equal(one.views["global"][:, good], other.views["global"][:, good])
            masked += [key for key, valid in zip(one.keys, good.tolist(), strict=True) if not valid]
    assert sorted(masked) == ["03", "21"]


@pytest.mark.parametrize("trouble", [crashing.crash, crashing.leave])
def test_policy_raise_says_what_happened(series, trouble):
    decode = TroubledDecode(trouble, {"30"})
    with (
        troubled(series, "stream.on_bad=raise", decode=decode) as pipe,
        pytest.raises(SampleError, match=TROUBLES[trouble]) as caught,
    ):
        steps(pipe, 4)
    assert "30" in str(caught.value)  # the sample is named
    assert ".tar" in str(caught.value)


def test_nothing_but_crashes_ends_the_run(series):
    decode = TroubledDecode(crashing.crash, {f"{n:02d}" for n in range(4)})
    with troubled(series, "stream.on_bad=replace", decode=decode) as pipe:
        keys = [key for batch in steps(pipe, 4) for key in batch.keys]
    assert not {"00", "01", "02", "03"} & set(keys)
    assert len(keys) == 48


def test_a_worker_that_is_slow_but_gets_on_is_left_alone(series):  # a task takes 1.8 s
    with troubled(series, workers=0) as plain:
        slow = {*plain.loading.load(1).keys}
    with troubled(series, "run.patience=1", decode=TroubledDecode(crashing.rest, slow)) as pipe:
        pipe.loading.load(0)
        pids = pipe.loading.crew.pids
        assert not pipe.loading.load(1).faults
        assert pids == pipe.loading.crew.pids


@pytest.mark.parametrize(
    ("trouble", "kind", "message"),
    [
        (crashing.fail, ZeroDivisionError, "the decoder is wrong"),
        (crashing.fail_strangely, RuntimeError, "the decoder is strange"),
    ],
)
def test_a_decoder_that_is_wrong_ends_the_run_and_tells_where(series, trouble, kind, message):
    decode = TroubledDecode(trouble, {"05"})
    with troubled(series, decode=decode) as pipe, pytest.raises(kind) as caught:
        steps(pipe, 4)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert message in told
    assert 'crashing.py", line' in told
    assert trouble.__name__ in told


def test_what_a_decoder_prints_is_not_in_the_output(series, capfd):
    with troubled(series, decode=TroubledDecode(crashing.chat, {"01", "40"})) as pipe:
        assert len(steps(pipe, 4)) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("chatter of a decoder") == err.count("more chatter") >= 2


def test_workers_import_no_torch(series):
    decode = TroubledDecode(crashing.report, {"11"})
    with (
        troubled(series, "stream.on_bad=raise", decode=decode) as pipe,
        pytest.raises(SampleError, match=r"imported: \[\]$"),
    ):
        steps(pipe, 4)


@pytest.mark.parametrize("asked", [None, "3"])
def test_workers_have_one_thread_unless_the_user_says_otherwise(series, monkeypatch, asked):
    """NumPy's library would start one for each core, in each worker."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", asked)
    said = rf"by {asked}$" if asked else "collects: True, 1 thread, matrices by 1$"
    decode = TroubledDecode(crashing.describe, {"11"})
    with (
        troubled(series, "stream.on_bad=raise", decode=decode) as pipe,
        pytest.raises(SampleError, match=said),
    ):
        steps(pipe, 4)


def test_a_decoder_of_the_script_itself_is_refused(series, monkeypatch):
    monkeypatch.setattr(TroubledDecode, "__module__", "__main__")
    with pytest.raises(RecipeError, match=r"TroubledDecode is defined .*; move it into"):
        troubled(series)
    with troubled(series, workers=0) as pipe:
        assert len(steps(pipe, 1)) == 1


def test_a_decoder_that_workers_cannot_load_is_named(series, monkeypatch):
    decode = TroubledDecode(crashing.Stubborn())
    with (
        troubled(series, decode=decode) as pipe,
        pytest.raises(ImportError, match="not in workers"),
    ):
        steps(pipe, 1)


def test_a_decoder_of_megabytes_reaches_its_workers(series):
    decode = TroubledDecode()
    decode.table = os.urandom(3_000_000)
    with troubled(series, decode=decode) as pipe:
        assert len(steps(pipe, 2)) == 2


# one clear error


def test_a_forked_process_may_not_use_the_pipeline_nor_harm_it(packed):
    with load(packed, "run.workers=2") as pipe:
        first = steps(pipe, 1)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover  the child
            said = "nothing"
            try:
                with pipe:
                    next(iter(pipe))
            except StateError as error:
                said = str(error)
            finally:
                os.write(writer, said.encode())
                os._exit(0)
        os.waitpid(child, 0)
        said = os.read(reader, 10_000).decode()
        os.close(reader)
        os.close(writer)
        rest = steps(pipe, 4)
    assert said.startswith("test.yaml: the pipeline was made in another process; load one in each")
    with load(packed, "run.workers=0") as plain:
        for one, other in zip(first + rest, steps(plain, 5), strict=True):
            same(one, other)


def test_two_threads_may_not_iterate_at_once(series):
    decode = TroubledDecode(crashing.nap)
    with troubled(series, decode=decode) as pipe:
        errors = []

        def take():
            try:
                next(iter(pipe))
            except StateError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (error,) = errors
        assert error == (
            "t.yaml: two threads iterate over the pipeline at once; iterate in one and hand the "
            "batches on"
        )
        assert next(iter(pipe)).step == 1  # the lock is free again, and one batch was taken


def test_workers_that_were_closed_say_so(packed):
    with load(packed, "run.workers=1") as pipe:
        crew = pipe.loading.crew
        steps(pipe, 1)
    with pytest.raises(SslpipeError, match="workers: are closed"):
        crew.submit([], np.zeros(1, np.uint8)).result()
    crew.close()  # once more is no fault


def test_an_interrupt_while_one_waits_for_workers_changes_nothing(series):
    with troubled(series, workers=0) as plain:
        truth = steps(plain, 4)
    decode = TroubledDecode(crashing.nap)
    with troubled(series, "run.prefetch=0", decode=decode) as pipe:
        same(steps(pipe, 1)[0], truth[0])
        threading.Timer(0.05, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            steps(pipe, 39)  # two samples of each nap
        pipe.load_state_dict({**pipe.state_dict(), "step": 1})
        for batch, other in zip(steps(pipe, 3), truth[1:], strict=True):
            same(batch, other)


def test_two_threads_may_wait_for_workers_at_once(series):
    with troubled(series, workers=0) as plain:
        truth = [plain.load_share(step).uids.tolist() for step in range(12)]
    with troubled(series, decode=TroubledDecode(crashing.doze)) as pipe:
        found = {}

        def take(first):
            for step in range(first, 12, 3):
                found[step] = pipe.load_share(step).uids.tolist()

        threads = [threading.Thread(target=take, args=[first]) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[step] for step in range(12)] == truth


# samples that are out of the ordinary


def test_long_and_foreign_keys(tmp_path):
    names = ["x" * 180, "y" * (KEY_BYTES - 8), "ä" * 70, "写真-ß", "z" * KEY_BYTES, "plain"]
    for n, name in enumerate(names):
        image = Image.new("RGB", (40 + n, 30), (40 * n, 0, 0))
        (tmp_path / "in").mkdir(exist_ok=True)
        image.save(tmp_path / "in" / f"{name}.jpg")
    pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=ImageCodec()))
    with load(tmp_path / "out", "stream.batch_size=6", "run.workers=2") as pipe:
        batch = steps(pipe, 1)[0]
    assert set(batch.keys) == set(names)
    with load(tmp_path / "out", "stream.batch_size=6", "run.workers=0") as plain:
        same(batch, steps(plain, 1)[0])


@pytest.mark.parametrize("trouble", [crashing.refuse, crashing.crash])
def test_a_long_key_of_a_bad_sample_is_told(tmp_path, trouble):
    names = ["a" * 200, "b" * 200, "c"]
    (tmp_path / "in").mkdir()
    for name in names:
        np.save(tmp_path / "in" / f"{name}.npy", np.ones((2, 50), np.float32))
    pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=SeriesCodec()))
    words = "stream.batch_size=3", "stream.on_bad=mask"
    with troubled(tmp_path / "out", *words, decode=TroubledDecode(trouble, {"a" * 200})) as pipe:
        batch = steps(pipe, 1)[0]
    keys = dict(zip(batch.keys, batch.valid.tolist(), strict=True))
    if trouble is crashing.refuse:
        assert keys == {"a" * 200: False, "b" * 200: True, "c": True}
    else:  # it died with the worker
        assert sorted(keys.values()) == [False, True, True]
        assert {"b" * 200, "c"} < set(keys)


@pytest.mark.parametrize("wide", [0, 8, 500, 100_000])
def test_arrays_that_are_larger_than_their_room(series, wide):
    with troubled(series, workers=0, decode=TroubledDecode(wide=100_000)) as plain:
        truth = steps(plain, 3)
    with troubled(series, decode=TroubledDecode(wide=wide)) as pipe:
        for one, other in zip(steps(pipe, 3), truth, strict=True):
            same(one, other)


def test_arrays_that_are_larger_than_what_is_usual(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for n, length in enumerate((40, 3000, 50, 200_000, 60, 9000)):
        np.save(tmp_path / "in" / f"{n}.npy", rng.normal(size=(2, length)).astype(np.float32))
    pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=SeriesCodec()))
    with troubled(tmp_path / "out", "stream.batch_size=6") as pipe:
        share = pipe.load_share(0)
        for key, array, extent in zip(share.keys, *share.columns[0], strict=True):
            stored = np.load(tmp_path / "in" / f"{key}.npy")
            np.testing.assert_array_equal(array.numpy(), stored)
            assert extent.tolist() == [stored.shape[1]]


class Blind(ImageCodec):
    """Sees no sides."""

    def inspect(self, data):
        return 0, 0


def test_images_whose_sides_the_index_does_not_know(tmp_path):
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for n in range(8):
        pixels = rng.integers(0, 256, (40 + 30 * n, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{n}.{'png' if n % 2 else 'jpg'}")

    pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=Blind()))
    with load(tmp_path / "out", "run.workers=0") as plain:
        records = plain.source.records(plain.source.wants(0))
        assert not records.samples["extent"].any()
        truth = steps(plain, 2)
    with load(tmp_path / "out", "run.workers=2") as pipe:
        for one, other in zip(steps(pipe, 2), truth, strict=True):
            same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_whose_arrays_are_of_two_kinds(series, workers):
    with troubled(series, workers=workers, decode=TroubledDecode(mixed=True)) as pipe:
        share = pipe.load_share(0)
    with troubled(series, workers=0) as plain:
        other = plain.load_share(0)
    arrays = share.columns[0].arrays
    kinds = {array.dtype for array in arrays}
    assert kinds == {torch.float32, torch.float64}
    for uid, array, single in zip(share.uids, arrays, other.columns[0].arrays, strict=True):
        assert array.dtype == (torch.float64 if uid % 2 else torch.float32)
        assert torch.equal(array.float(), single)
    np.testing.assert_array_equal(share.columns[0].extents, other.columns[0].extents)


@pytest.fixture
def pairs(tmp_path, run):
    """A tar of 12 pictures, each with a series beside it but the last, and its index."""
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs" / "a.tar", "w") as tar:
        for number in range(12):
            picture, series = tmp_path / "picture.png", tmp_path / "series.npy"
            Image.new("RGB", (20 + number, 30), (20 * number, 0, 0)).save(picture)
            np.save(series, np.full((2, 40 + number), number, np.float32))
            tar.add(picture, arcname=f"{number}.png")
            if number < 11:
                tar.add(series, arcname=f"{number}.npy")
    run("index", tmp_path / "pairs")
    return tmp_path / "pairs"


def test_other_members_than_the_payload(pairs):
    def batches(workers, rank, world_size):
        words = [f"run.workers={workers}", "stream.on_bad=mask", "stream.order=global"]
        recipe = parse_recipe(TWO, path="two.yaml", overrides=words)
        where = {"rank": rank, "world_size": world_size}
        with sslpipe.load(recipe, shards=pairs, device="cpu", **where) as pipe:
            return steps(pipe, 2)

    for rank, world_size in ((0, 1), (1, 2)):
        truth = batches(0, rank, world_size)
        for one, other in zip(batches(2, rank, world_size), truth, strict=True):
            same(one, other)
            for b, key in enumerate(one.keys):
                assert one.valid[b] == (key != "11")
                if one.valid[b]:
                    assert (one.views["series"][:, b] == int(key)).all()


# distant shards


def test_shards_on_a_server_with_a_cache_and_without(packed, tmp_path):
    with load(packed, "run.workers=0") as plain:
        truth = steps(plain, 7)
    with serve(packed) as server:
        for words in ((), (f"run.cache={tmp_path}/c",)):
            with load(server.url, "run.workers=2", *words) as pipe:
                for one, other in zip(steps(pipe, 7), truth, strict=True):
                    same(one, other)
        tight = sum(shard.bytes for shard in open_manifest(packed).shards) / 1e9
        words = (f"run.cache={tmp_path}/t", f"run.cache_gb={tight}")
        with load(server.url, "run.workers=3", *words) as pipe:
            for one, other in zip(steps(pipe, 7), truth, strict=True):
                same(one, other)


def test_a_server_that_loses_a_shard_ends_the_run(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    with serve(folder) as server, load(server.url, "run.workers=2") as pipe:
        steps(pipe, 1)
        for tar in folder.glob("*.tar"):
            tar.unlink()
        with pytest.raises(ShardError, match=rf"{server.url}/.*tar: is missing"):
            steps(pipe, 6)
        assert pipe.replaced == 0


def test_a_local_shard_that_is_gone_ends_the_run(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    with load(folder, "run.workers=2", "run.prefetch=0") as pipe:
        for tar in folder.glob("*.tar"):
            tar.unlink()
        with pytest.raises(ShardError, match="is missing"):
            steps(pipe, 1)
        assert pipe.replaced == 0
