"""Other samples beside each: drawn by its key alone, loaded as it is, and replaced if they are bad.

A modality of series gives as views the mean of a sample and that of each of its partners.
"""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.batch import ViewSpec
from sslpipe.errors import RecipeError
from sslpipe.modalities import Made, Partners, Raw, Tables
from sslpipe.recipe import parse_recipe
from sslpipe.rng import sample_id, uniforms
from sslpipe.shards import open_manifest
from sslpipe.stream.packed import Corpus
from tests.modalities.toy import SeriesModality
from tests.streaming import steps

from . import crashing
from .crashing import MixedDecode

NAME = "tests.stream.test_partners:Mixed"
RECIPE = f"""\
modality: {NAME}
stream: {{batch_size: 12, seed: 3, order: global, max_bad_fraction: 1.0}}
views: {{global: {{ops: [Window: {{length: 32}}]}}}}
run: {{threads: 2, prefetch: 0, workers: 0}}
"""
COUNT = 2


class MixedDecider:
    """Says how many numbers of each partner count; a sample's own are all."""

    masks, targets, summaries = {}, {}, {}

    def __init__(self):
        self.views = {"global": ViewSpec("global", 1, "T", (1 + COUNT,))}

    def instructions(self, *, epochs, uids, extents):
        return np.full((len(uids), 1), -1)

    def partner_instructions(self, *, epochs, uids, extents, turns):
        drawn = uniforms(1, seed=0, epoch=epochs, stream="which", ids=uids, view=turns)
        assert (extents[:, 0] >= 40).all()
        return np.floor(drawn * extents[:, :1]).astype(np.int64)

    def decide(self, *, epochs, uids, place, extents):
        assert len(extents) == (1 + COUNT) * len(uids)
        return Tables({}, {}, {}, extents)


class MixedMaker:
    """The mean of each array."""

    blank = Raw(np.zeros((1, 1), np.float32), (1,))

    def make(self, arrays, tables, targets):
        means = torch.stack([array.mean() for array in arrays]).view(1 + COUNT, -1)
        return Made({"global": means.T[None].contiguous()}, {}, {}, {})


class Mixed(SeriesModality):
    """What the recipe names; the decoder is the class's."""

    chosen = MixedDecode()

    def decider(self, recipe, groups):
        return MixedDecider()

    def decoder(self, recipe):
        return self.chosen

    def maker(self, recipe, decider, *, device, threads):
        return MixedMaker()

    def partners(self, recipe, decider):
        return Partners(COUNT, decider.partner_instructions)


def load(shards, *overrides, decode=None, **where):
    Mixed.chosen = decode or MixedDecode()
    recipe = parse_recipe(RECIPE, path="m.yaml", overrides=overrides)
    return sslpipe.load(recipe, shards=shards, device="cpu", **where)


def seen(batches):
    """(epoch, uid) -> its views."""
    return {
        (b.epoch, uid): b.views["global"][0, place].tolist()
        for b in batches
        for place, uid in enumerate(b.uids.tolist())
    }


def shard_of(folder):
    """uid -> number of its shard."""
    with load(folder) as pipe:
        store = pipe.source.corpora[0].store
        return {int(u): s for s in range(store.shards) for u in store.index(s).samples["uid"]}


def test_partners_are_others_of_the_shard_each_as_likely(series):
    whose, pairs = shard_of(series), []
    with load(series) as pipe:
        for step in range(60 * len(pipe)):
            share = pipe.load_share(step)
            assert share.partners.shape == (COUNT, 12)
            assert len(share.columns[0].arrays) == 12 * (1 + COUNT)
            for turn in range(COUNT):
                pairs += zip(share.uids.tolist(), share.partners[turn].tolist(), strict=True)
    assert all(one != other and whose[one] == whose[other] for one, other in pairs)
    counts = dict.fromkeys(pairs, 0)
    for pair in pairs:
        counts[pair] += 1
    # ten samples a shard but in the last, which has eight: 90 pairs of each of four, and 56
    assert len(counts) == 4 * 90 + 56
    expected = {pair: 60 * COUNT / (9 if whose[pair[0]] < 4 else 7) for pair in counts}
    chi2 = sum((counts[pair] - expected[pair]) ** 2 / expected[pair] for pair in counts)
    assert abs(chi2 - len(counts)) < 5 * (2 * len(counts)) ** 0.5


def test_any_ranks_batches_workers_and_resume_have_the_same_partners(series):
    with load(series) as pipe:
        truth = seen(steps(pipe, 8))
        state = pipe.state_dict()
        behind = steps(pipe, 2)
    assert len({tuple(views) for views in truth.values()}) == len(truth) == 96
    for world in (2, 3):
        for rank in range(world):
            with load(series, rank=rank, world_size=world) as pipe:
                mine = seen(steps(pipe, 8))
            assert mine.items() <= truth.items()
    with load(series, "stream.batch_size=8", "stream.order=sequential") as pipe:
        assert seen(steps(pipe, 12)) == truth  # another order has other neighbours
    with load(series, "run.workers=2") as pipe:
        pipe.load_state_dict(state)
        for one, other in zip(steps(pipe, 2), behind, strict=True):
            assert torch.equal(one.views["global"], other.views["global"])


def test_workers_that_are_killed_change_nothing(series):
    with load(series) as pipe:
        truth = seen(steps(pipe, 6))
    slow = MixedDecode(crashing.doze)
    with load(series, "run.workers=2", "run.prefetch=1", decode=slow) as pipe:
        batches = []
        for step in range(6):
            batches += steps(pipe, 1)
            for victim in pipe.loading.crew.pids[: step % 2]:
                os.kill(victim, signal.SIGKILL)
    assert seen(batches) == truth


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_partner_is_replaced_and_the_sample_stays(series, workers):
    decode, bad = MixedDecode(crashing.refuse, {"07"}), sample_id("07")
    with load(series) as pipe:
        shares = [pipe.load_share(step) for step in range(4)]
        truth = seen(steps(pipe, 4))
    with load(series, f"run.workers={workers}", decode=decode) as pipe:
        mended = [pipe.load_share(step) for step in range(4)]
        found = seen(steps(pipe, 4))
    for good, share in zip(shares, mended, strict=True):
        assert bad not in {*share.uids.tolist(), *share.partners.ravel().tolist()}
        assert (share.partners != share.uids).all()
        stays = good.uids != bad
        assert (share.uids[stays] == good.uids[stays]).all()
        same = (good.partners != bad) & stays
        assert (share.partners[same] == good.partners[same]).all()
        met = int((~stays).sum() + (good.partners[:, stays] == bad).sum())
        assert len(share.faults) >= met
        assert {fault.uid for fault in share.faults} <= {bad}  # never the sample's own
    assert any((good.partners == bad).any() for good in shares)
    for key, views in found.items():
        if key in truth:
            assert views[0] == truth[key][0]


def test_a_bad_partner_is_blank_where_bad_samples_are_masked(series):
    decode, bad = MixedDecode(crashing.refuse, {"07"}), sample_id("07")
    with load(series, "stream.on_bad=mask", decode=decode) as pipe:
        shares = [pipe.load_share(step) for step in range(4)]
        batches = steps(pipe, 4)
    blank = 0
    for share, batch in zip(shares, batches, strict=True):
        assert batch.valid.tolist() == (share.uids != bad).tolist()
        empty = batch.views["global"][0, :, 1:].T == 0
        assert (empty.numpy() == (share.partners == bad)).all()
        blank += int(empty.sum())
    assert blank


def test_an_excluded_sample_is_nobodys_partner(series):
    manifest = open_manifest(series)
    with load(series) as pipe:
        index = pipe.source.corpora[0].store.index(1)
        gone = int(index.samples["uid"][3])
        row = 3
    left_out = replace(manifest, exclude={manifest.shards[1].file: (row,)})
    with load(left_out) as pipe:
        shares = [pipe.load_share(step) for step in range(40)]
    partners = {uid for share in shares for uid in share.partners.ravel().tolist()}
    assert gone not in partners
    assert len(partners) == 47


class Alone:
    """What `Corpus.another` needs of one."""

    def __init__(self, sizes, gaps):
        self.order = type("Sizes", (), {"sizes": np.array(sizes)})
        self._gaps = {s: np.array(x) - np.arange(len(x)) for s, x in gaps.items()}

    _in_tar, _among_kept, another = Corpus._in_tar, Corpus._among_kept, Corpus.another


def test_another_of_a_shard_of_one_is_any_of_the_set():
    corpus = Alone([1, 3, 2], {1: [0, 2]})  # of the second, rows 1, 3 and 4 are left
    places = [(0, 0), (1, 1), (1, 3), (1, 4), (2, 0), (2, 1)]
    for shard, row in places:
        asked = np.full(60, shard), np.full(60, row)
        found = {*zip(*(x.tolist() for x in corpus.another(*asked, np.arange(60))), strict=True)}
        there = [p for p in places if p != (shard, row) and (p[0] == shard or shard == 0)]
        assert found == {*there}
    zero = np.zeros(1, dtype=np.int64)
    assert Alone([1], {}).another(zero, zero, zero + 5) == (zero, zero)


def test_an_iterable_has_no_partners(series):
    with pytest.raises(RecipeError, match=r"^m\.yaml: other samples are wanted beside each"):
        load([{"__key__": "a", "npy": b""}])
