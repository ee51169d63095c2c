"""Samples of an iterable come out of worker processes as they come out of this one."""

import gc
import io
import os
import re
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

import sslpipe
from sslpipe.errors import ContractError, RecipeError, SampleError, ShardError
from sslpipe.recipe import parse_recipe
from sslpipe.shards import open_manifest
from sslpipe.stream import parcels
from sslpipe.stream.foreign import ForeignSample
from sslpipe.stream.parcels import Parcels
from sslpipe.stream.source import SUBSTITUTES
from sslpipe.stream.tasks import DECODE, KEY_BYTES, READ
from tests.modalities.test_toy import TWO
from tests.streaming import load, steps

from . import crashing
from .crashing import DeepDecode, TroubledDecode
from .test_workers import TROUBLES, killed_without_a_change, same, troubled


def npy(array):
    """An array as bytes."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.fixture(scope="module")
def samples():
    """48 series, (2, T) each, T between 40 and 90 steps; key: 00 to 47."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, rng.integers(40, 90))).astype(np.float32) for _ in range(48)]
    return [
        {"__key__": f"{n:02d}", "__url__": f"{n // 20}.tar", "npy": npy(each), "cls": n}
        for n, each in enumerate(arrays)
    ]


@pytest.fixture(scope="module")
def pictures(packed):
    """The packed pictures as webdataset gives them."""
    manifest = open_manifest(packed)
    urls = [str(manifest.tar(shard)) for shard in manifest.shards]
    with warnings.catch_warnings():  # webdataset leaves its files open
        warnings.simplefilter("ignore", ResourceWarning)
        found = [dict(sample) for sample in wds.WebDataset(urls, shardshuffle=False)]
        gc.collect()
    return found


def told(pipe, count):
    """Batches of a pipeline, and what is told of bad samples."""
    batches, reasons = [], []
    for _ in range(count):
        batch, faults, _ = pipe._next()
        batches.append(batch)
        reasons.append([fault.reason for fault in faults])
    return batches, reasons


def alike(shards, count, *overrides, workers=(1, 3), **where):
    """Whether batches and faults are the same for any number of workers; they are returned."""
    with load(shards, "run.workers=0", *overrides, **where) as plain:
        truth, reasons = told(plain, count)
    for number in workers:
        with load(shards, f"run.workers={number}", *overrides, **where) as pipe:
            assert len(pipe.loading.crew.pids) <= number
            batches, others = told(pipe, count)
        assert others == reasons
        for one, other in zip(batches, truth, strict=True):
            same(one, other)
    return truth, reasons


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("policy", ["replace", "mask"])
def test_the_number_of_workers_changes_nothing_of_an_iterable(pictures, policy, prefetch):
    bad = {0, 3, 7, 8, 9, 15, 16, *range(24, 36)}  # at both ends of batches, and more than one has
    shards = [
        {**each, "jpg": each["jpg"][:100] if n in bad else each["jpg"]}
        for n, each in enumerate(pictures)
    ]
    words = f"stream.on_bad={policy}", "stream.max_bad_fraction=1", f"run.prefetch={prefetch}"
    truth, reasons = alike(shards, 12, *words)
    expected = shards * 3 if policy == "mask" else [s for s in shards if len(s["jpg"]) > 100] * 4
    assert [key for batch in truth for key in batch.keys] == [s["__key__"] for s in expected[:96]]
    first, second = reasons[0][:2]
    assert first.startswith(f"{shards[0]['__url__']} {shards[0]['__key__']}: ")
    assert second.startswith(f"{shards[3]['__url__']} {shards[3]['__key__']}: ")
    kept = sum(not valid for batch in truth for valid in batch.valid.tolist())
    assert kept == (0 if policy == "replace" else sum(map(len, reasons)))


def test_what_is_no_jpeg_and_keys_of_all_sorts(pictures):
    shards = []
    for number in range(24):
        picture = io.BytesIO()
        Image.new("RGB", (20 + 9 * number, 60), (9 * number, 0, 0)).save(picture, "PNG")
        key = f"a/b.c.{number}" if number % 3 else f"{number}/{'ü' * KEY_BYTES}"
        shards.append({"__key__": key, "PNG": picture.getvalue(), "cls": b"1"})
    shards[9] |= {"PNG": b""}
    truth, reasons = alike([*shards, *pictures[:8]], 8)  # arrays larger than their room come twice
    assert truth[0].keys == tuple(sample["__key__"] for sample in shards[:8])
    (reason,) = reasons[1]
    assert reason.startswith(f"iterable {shards[9]['__key__']}: ")


def test_members_beside_payloads_reach_their_decoder():
    """Under any names that end so; nothing else is sent."""
    shards = []
    for number in range(24):
        picture = io.BytesIO()
        Image.new("RGB", (20 + number, 30), (9 * number, 0, 0)).save(picture, "PNG")
        name = ("npy", "left.npy", f"{number}.npy")[number % 3]
        series = npy(np.full((2, 40 + number), number, np.float32))
        shards.append({"__key__": str(number), "png": picture.getvalue(), name: series, "x": b"1"})
    del shards[11]["1.npy" if 11 % 3 == 1 else "11.npy"]
    batches = {}
    for workers in (0, 2):
        words = [f"run.workers={workers}", "stream.on_bad=mask"]
        recipe = parse_recipe(TWO, path="two.yaml", overrides=words)
        with sslpipe.load(recipe, shards=shards, device="cpu") as pipe:
            batches[workers], reasons = told(pipe, 6)
        assert [r for each in reasons for r in each if "11: has no member .npy" in r]
    for one, other in zip(batches[2], batches[0], strict=True):
        same(one, other)
        for b, key in enumerate(one.keys):
            assert one.valid[b] == (key != "11")
            if one.valid[b]:
                assert (one.views["series"][:, b] == int(key)).all()


# workers that end


def test_workers_that_are_killed_change_nothing_of_an_iterable(samples):
    assert len(killed_without_a_change(samples, 24)) >= 12


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("kind", [TroubledDecode, DeepDecode])  # at decoding, or at measuring
def test_a_sample_of_an_iterable_that_ends_its_worker_is_bad(samples, trouble, kind):
    kept = [sample for sample in samples if sample["__key__"] != "21"]
    with troubled(kept, workers=0) as plain:
        truth = steps(plain, 4)
    decode = kind(trouble, {"21"})
    with troubled(samples, "run.patience=1", "run.prefetch=2", decode=decode) as pipe:
        batches, reasons = told(pipe, 3)
    for one, other in zip(batches, truth, strict=False):
        assert one.keys == other.keys
        assert torch.equal(one.views["global"], other.views["global"])
    ((reason,),) = (each for each in reasons if each)
    assert re.match(f"1.tar 21: {TROUBLES[trouble]}", reason)


def test_a_sample_with_a_long_key_that_ends_its_worker_is_named(samples):
    key = "k" * (KEY_BYTES + 1)
    shards = [{**samples[0], "__key__": key}, *samples[1:]]
    decode = TroubledDecode(crashing.crash, {key})
    with (
        troubled(shards, "stream.on_bad=raise", decode=decode) as pipe,
        pytest.raises(SampleError, match=rf"^0\.tar {key}: crashed the decoder \(signal 11"),
    ):
        steps(pipe, 1)


def test_nothing_but_bad_samples_ends_the_run_with_an_iterable(samples):
    with (
        troubled(samples, decode=TroubledDecode(crashing.refuse), workers=2) as pipe,
        pytest.raises(
            ShardError, match=f"^iterable: {SUBSTITUTES} bad samples in a row, .* is not"
        ),
    ):
        steps(pipe, 1)


@pytest.mark.parametrize("kind", [TroubledDecode, DeepDecode])
def test_a_decoder_that_is_wrong_ends_the_run_at_its_batch(samples, kind):
    with troubled(samples, decode=kind(crashing.fail, {"25"})) as pipe:
        assert [len(batch.keys) for batch in steps(pipe, 2)] == [12, 12]
        with pytest.raises(ZeroDivisionError, match="the decoder is wrong"):
            steps(pipe, 1)


def test_an_extent_that_no_index_could_hold_is_refused(samples):
    for wrong in ([3], (1, 2, 3, 4, 5), (-1,), (2**32,), (0.5,)):
        decode = TroubledDecode(measured=wrong)
        with (
            troubled(samples, workers=0, decode=decode) as pipe,
            pytest.raises(ContractError, match=r"TroubledDecode: 00: extent\(\) returned"),
        ):
            steps(pipe, 1)


# the iterable itself


class Counted:
    """Gives samples, and knows how many it has given; `wrong` raises before the sample there."""

    def __init__(self, samples, wrong=None):
        self.samples, self.wrong, self.given, self.begun = samples, wrong, 0, 0

    def __len__(self):
        return len(self.samples)

    def __iter__(self):
        self.begun += 1
        for number, sample in enumerate(self.samples):
            if number == self.wrong:
                raise LookupError("the iterable is wrong")
            self.given += 1
            yield sample


def test_without_prefetch_an_iterable_is_asked_for_no_more_than_is_needed(samples):
    counted = Counted(samples)
    with troubled(counted, "run.prefetch=0") as pipe:
        for step in range(1, 5):
            steps(pipe, 1)
            assert counted.given == 12 * step
    counted = Counted(samples)
    with troubled(counted, "run.prefetch=1", epochs=1) as pipe:
        assert len(steps(pipe, 4)) == 4
    assert counted.given == 48  # nothing behind what will be asked for


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_an_iterable_comes_at_its_batch(samples, workers):
    counted = Counted(samples, wrong=30)
    with troubled(counted, "run.prefetch=2", workers=workers) as pipe:
        assert [batch.keys[0] for batch in steps(pipe, 2)] == ["00", "12"]
        with pytest.raises(LookupError, match="the iterable is wrong"):
            steps(pipe, 1)
        counted.wrong = None
        assert steps(pipe, 1)[0].keys[0] == "00"  # it begins anew
    assert counted.begun >= 2


def test_a_jump_begins_anew_and_steps_count_on(samples):
    with troubled(samples, "run.prefetch=2") as pipe, troubled(samples, workers=0) as plain:
        steps(pipe, 3)
        for step in (6, 1):
            for each in (pipe, plain):
                each.load_state_dict({**each.state_dict(), "step": step})
            for one, other in zip(steps(pipe, 3), steps(plain, 3), strict=True):
                same(one, other)
    with troubled(samples) as pipe:
        assert pipe.loading.load_ahead(0, end=4).keys[0] == "00"
        read = pipe.loading.load(1, READ)
        assert (read.keys[0], read.columns) == ("12", ())
        assert pipe.loading.load(2, DECODE).keys[0] == "24"


def test_small_iterables_have_no_workers_and_others_have(samples, monkeypatch):
    monkeypatch.setattr("sslpipe.modalities.crews.cores", lambda: 4)
    for count, workers in ((48, 0), (100_000, 4)):
        words = "run.workers=auto", f"stream.epoch_samples={count}"
        with troubled(samples, *words) as pipe:
            assert pipe.workers == workers


def test_a_decoder_of_the_script_itself_is_refused_for_an_iterable(samples, monkeypatch):
    monkeypatch.setattr(TroubledDecode, "__module__", "__main__")
    with pytest.raises(RecipeError, match="defined in the script that runs"):
        troubled(samples)


# its samples in memory


def sample_of(number, *sizes):
    """A sample with members of some sizes."""
    members = [(f"e{n}", bytes([number % 256]) * size) for n, size in enumerate(sizes)]
    return ForeignSample(number, f"k{number}", -1, 0, "iterable", members)


def read(stock, parcel):
    """The members of all samples of a parcel, as workers read them."""
    records = stock.records(parcel.wants)
    tar = stock.open(int(parcel.wants.shards[0]))
    found = []
    for row, payload in enumerate(records.payloads):
        places = [(int(payload["ext"]), int(payload["offset"]), int(payload["size"]))]
        others = stock.others(parcel.wants, parcel.wants.rows)
        places += [(ext, start, size) for at, ext, start, _, size, _ in others if at == row]
        found.append(
            [
                (tar.index.extensions[ext], tar.read(start, 0, size)[1])
                for ext, start, size in places
            ]
        )
    return found


def test_bytes_are_written_whole_however_little_the_system_takes_at_once(monkeypatch):
    samples = [sample_of(n, 3000 + n, *[7] * (n % 3)) for n in range(700)]  # more than one call
    truth = [[*sample.members] for sample in samples]
    some = os.pwritev

    def little(file, blocks, at):
        return some(file, [b"".join(blocks)[:100_000]], at)

    for write in (some, little):
        monkeypatch.setattr(parcels.os, "pwritev", write)
        stock = Parcels()
        assert read(stock, stock.pack(samples)) == truth
        stock.close()


def test_memory_is_used_again():
    stock = Parcels()
    for number in range(50):
        parcel = stock.pack([sample_of(number, 3_000_000)])
        assert read(stock, parcel) == [[("e0", bytes([number]) * 3_000_000)]]
        stock.drop(parcel)
        del parcel
    assert stock._slots.bytes < 20_000_000
    stock.close()
