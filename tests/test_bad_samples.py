"""Damaged samples: every policy, alike on all topologies, and never unnoticed."""

import json
import shutil
from collections import Counter

import pytest
import torch

import sslpipe
from sslpipe.errors import SampleError, ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, exclude_rows, open_manifest, pack

from .conftest import write_images
from .streaming import damage, load, steps, trace

BAD = [(0, 3), (1, 2), (1, 3), (2, 0)]  # shard, row


@pytest.fixture(scope="module")
def damaged(packed, tmp_path_factory):
    """The packed set with four flipped bits; and the uids of their samples."""
    folder = shutil.copytree(packed, tmp_path_factory.mktemp("damaged") / "packed")
    return folder, {damage(folder, *place) for place in BAD}


def joined(shards, world_size, count, *overrides, state=None):
    """What all ranks decide, together; from a state on, if there is one."""
    whole = [{} for _ in range(count)]
    for rank in range(world_size):
        with load(shards, *overrides, rank=rank, world_size=world_size) as pipe:
            if state:
                pipe.load_state_dict(state)
            for batch, part in zip(whole, trace(steps(pipe, count)), strict=True):
                batch |= part
    return whole


def test_a_flipped_bit_is_replaced_alike_on_all_topologies_counted_and_logged(
    packed, tmp_path, caplog
):
    folder = shutil.copytree(packed, tmp_path / "packed")
    uid = damage(folder, 1, 2)
    with load(folder) as pipe:
        one = trace(steps(pipe, 10))
        assert pipe.replaced >= 1
        told = [record for record in caplog.records if record.name == "sslpipe.pipeline"]
        assert len(told) == pipe.replaced
    assert "CRC32" in caplog.text
    assert f"{open_manifest(folder).shards[1].file} sample 2 (class" in caplog.text
    assert all(uid not in batch for batch in one)
    joined = [{} for _ in one]
    for rank in range(4):
        with load(folder, rank=rank, world_size=4) as pipe:
            for whole, part in zip(joined, trace(steps(pipe, 10)), strict=True):
                whole |= part
    assert joined == one


class Lenient(ImageCodec):
    """Packs what it should not."""

    def inspect(self, data):
        return 1, 1


def test_an_image_that_does_not_decode_is_replaced_or_raised_by_name(tmp_path, caplog):
    write_images(tmp_path / "in", 12)
    (tmp_path / "in/class0/broken.jpg").write_bytes(b"\xff\xd8 no picture")
    pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=Lenient()))
    with load(tmp_path / "out") as pipe:
        keys = [key for batch in steps(pipe, 13) for key in batch.keys]
        assert pipe.replaced == 8  # once in each of 8 epochs of 13
    assert "class0/broken" not in keys
    assert "class0/broken: is a cut or damaged JPEG" in caplog.text
    with (
        load(tmp_path / "out", "stream.on_bad=raise") as pipe,
        pytest.raises(SampleError, match=r"in-.*tar class0/broken: is a cut or damaged"),
    ):
        steps(pipe, 2)


def test_policy_raise_names_the_sample(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    damage(folder, 1, 2)
    with load(folder, "stream.on_bad=raise") as pipe, pytest.raises(SampleError, match="sample 2"):
        steps(pipe, 10)


def test_nothing_but_bad_samples_ends_the_run(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    manifest = open_manifest(folder)
    for shard in range(len(manifest.shards)):
        for row in range(manifest.shards[shard].samples):
            damage(folder, shard, row)
    with load(folder) as pipe, pytest.raises(ShardError, match="bad samples in a row"):
        steps(pipe, 1)


def test_a_share_that_is_asked_for_again_is_the_same_with_its_faults(damaged):
    """Shares are planned many at once, and a substitute changes no plan."""
    folder, _ = damaged
    with load(folder, "stream.on_bad=replace") as pipe:
        pairs = [(pipe.load_share(step), pipe.load_share(step)) for step in range(10)]
    assert any(share.faults for share, _ in pairs)
    for one, other in pairs:
        assert one.keys == other.keys
        assert one.faults == other.faults


@pytest.mark.parametrize("policy", ["replace", "exclude"])
def test_substitutes_are_the_same_on_any_ranks_and_after_a_resume(damaged, policy):
    folder, bad = damaged
    settings = (f"stream.on_bad={policy}", "stream.batch_size=12")
    one = joined(folder, 1, 12, *settings)
    assert all(not bad & set(batch) for batch in one)
    for world_size in (2, 3, 4):
        assert joined(folder, world_size, 12, *settings) == one
    with load(folder, *settings) as pipe:
        steps(pipe, 5)
        state = pipe.state_dict()
    assert joined(folder, 3, 7, *settings, state=state) == one[5:]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_mask_flags_exactly_the_bad_ones_and_changes_no_other(packed, damaged, world_size):
    folder, bad = damaged
    with load(packed) as pipe:
        whole = [Counter(batch.uids.tolist()) for batch in steps(pipe, 12)]
    masked = 0
    for rank in range(world_size):
        with load(folder, "stream.on_bad=mask", rank=rank, world_size=world_size) as pipe:
            for step, batch in enumerate(steps(pipe, 12)):
                good = batch.uids[batch.valid].tolist()
                assert not bad & set(good)
                assert Counter(good) <= whole[step]
                whole[step] -= Counter(good)
                assert batch.views["global"].shape == (2, 8 // world_size, 3, 32, 32)
                assert (batch.labels[~batch.valid] == -1).all()
                assert torch.isfinite(batch.views["global"]).all()
                masked += int((~batch.valid).sum())
    assert all(set(left) <= bad for left in whole)
    assert masked == sum(left.total() for left in whole) >= 8  # two epochs and more


def test_a_masked_sample_is_black(damaged):
    with load(damaged[0], "stream.on_bad=mask") as pipe:
        batch = next(b for b in steps(pipe, 6) if not b.valid.all())
    black = batch.views["global"][:, ~batch.valid]
    assert (black == black[..., :1, :1]).all()
    assert "#" in batch.keys[batch.valid.tolist().index(False)]


def test_exclude_writes_bad_rows_down_and_a_new_manifest_leaves_exactly_them_out(
    packed, damaged, tmp_path
):
    folder, bad = damaged[0], damaged[1]
    folder = shutil.copytree(folder, tmp_path / "packed")
    log = tmp_path / "run" / "quarantine.jsonl"
    with load(folder, "stream.on_bad=exclude", quarantine=log) as pipe:
        steps(pipe, 15)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    files = [shard.file for shard in open_manifest(folder).shards]
    assert sorted((files.index(row["shard"]), row["row"]) for row in rows) == BAD
    assert all("CRC32" in row["reason"] for row in rows)
    before = open_manifest(folder)
    exclude_rows(before, logs=[log])
    after = open_manifest(folder)
    assert after.fingerprint != before.fingerprint
    assert open_manifest(folder / f"manifest-{before.fingerprint[3:11]}.json") == before
    with load(packed) as pipe:
        everything = {int(uid) for batch in steps(pipe, 6) for uid in batch.uids}
    assert len(everything) == 45
    for order in ("lanes", "global", "sequential"):
        settings = ("stream.on_bad=raise", f"stream.order={order}", "stream.remainder=wrap")
        with load(folder, *settings) as pipe:
            assert len(pipe) == 41 // 8
            uids = torch.cat([batch.uids for batch in steps(pipe, 41)])  # 8 epochs of 41
        for epoch in uids.reshape(8, 41):
            assert set(epoch.tolist()) == everything - bad


def test_too_many_bad_samples_stop_the_run_though_each_has_a_substitute(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    for shard in range(3):
        for row in range(4):
            damage(folder, shard, row)
    with load(folder) as pipe, pytest.raises(ShardError, match=r"11 of .*max_bad_fraction = 0.001"):
        steps(pipe, 30)
    with load(folder, "stream.max_bad_fraction=1") as pipe:
        assert len(steps(pipe, 12)) == 12


ROWS = """\
modality: text
stream: {batch_size: 2, rows: {packing: best_fit}, on_bad: mask}
views: {global: {ops: [Tokens: {length: 512}]}}
run: {workers: 0}
"""


def test_of_rows_the_limit_counts_documents_as_it_counts_the_bad_ones(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"a document of few words, {number}")
    out = tmp_path / "set"
    pack(tmp_path, out, PackSettings(codec=TextCodec()))
    for row in range(15):  # 7.5 % of the documents, more than there are rows of them
        damage(out, 0, row * 13)
    for limit, stops in ((0.1, False), (0.05, True)):
        recipe = parse_recipe(ROWS, overrides=[f"stream.max_bad_fraction={limit}"])
        with sslpipe.load(recipe, shards=out, device="cpu") as pipe:
            if not stops:
                assert sum(len(batch.uids) for batch in pipe) < 15
                continue
            with pytest.raises(ShardError, match=r"1\d of the first (1|2)\d\d samples are bad"):
                steps(pipe, len(pipe))


def test_an_input_error_is_no_bad_sample(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    with load(folder, "run.prefetch=0") as pipe:
        for shard in open_manifest(folder).shards:
            (folder / shard.file).unlink()
        with pytest.raises(ShardError, match="is missing"):
            steps(pipe, 1)
        assert pipe.replaced == 0
