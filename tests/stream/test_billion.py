"""10^9 samples in 10^5 shards on 512 ranks: what a rank reads of the indexes, and keeps of them."""

import numpy as np
import pytest

from sslpipe.shards.index import MEMBER, SAMPLE, Index
from sslpipe.shards.manifest import Manifest, Shard
from sslpipe.shards.read.store import INDEXES, ShardStore, indexes_kept
from sslpipe.stream import order, records
from sslpipe.stream.checks import say_shared_in_mixture, say_shared_lanes
from sslpipe.stream.packed import Corpus, Packed
from sslpipe.stream.plan import FixedSlots, Single

SHARDS, SIZE = 100_000, 10_000


def index_of(size):
    samples, members = np.zeros(size, SAMPLE), np.zeros(size, MEMBER)
    samples["uid"], samples["first"], samples["members"] = np.arange(size), np.arange(size), 1
    return Index(samples, members, ("jpg",), 1, "0" * 64)


class Simulated:
    """A store that makes indexes, and remembers of which shards."""

    classes, bytes, room = (), 0, 0

    def __init__(self, shards, size):
        self.made, self.fetched = index_of(size), np.zeros(shards, dtype=np.int64)
        self.read = []

    def index(self, shard):
        self.read.append(shard)
        return self.made


def source(kind, *, shards=SHARDS, size=SIZE, lanes=512, batch=16_384, rank=100, world=512):
    sizes = np.full(shards, size)
    made = order.build_order(sizes, kind=kind, seed=0, lanes=lanes, window=4)
    corpus = Corpus(
        Simulated(shards, size), made, fingerprint="", files=["a"] * shards, excluded={}
    )
    mine = order.slots(batch_size=batch, lanes=made.stride, rank=rank, world_size=world)
    plan = Single(made.samples, batch_size=batch, remainder="wrap")
    return Packed([corpus], plan, FixedSlots(mine), identity="")


def test_a_rank_reads_the_indexes_of_its_window_and_none_twice():
    made = source("lanes")
    store = made.corpora[0].store
    for step in range(200):
        found = made.records(made.wants(step))
        assert len(found.samples) == 32
    assert 4 <= len(store.read) == len(set(store.read)) <= 5
    far = made.wants(40_000)  # another window of its lane
    made.records(far)
    assert len(store.read) == len(set(store.read)) <= 10


def test_what_is_kept_is_counted_in_samples(monkeypatch):
    """And what a batch needs is there, however little may be kept."""
    monkeypatch.setattr(records, "ROWS", 1_000)
    made = source("global", shards=300, size=100, batch=64, lanes=None, rank=0, world=1)
    table, store = made.corpora[0].records, made.corpora[0].store
    for step in range(20):
        wants = made.wants(step)
        found = made.records(wants)
        assert (found.samples["uid"] == wants.rows).all()
        needed = len(np.unique(wants.shards))
        assert table._used <= max(1_000, 100 * needed)
    assert len(store.read) > 20 * 40  # such a set is read again and again: lanes are for it
    monkeypatch.setattr(records, "ROWS", 30_000)
    whole = source("global", shards=300, size=100, batch=64, lanes=None, rank=0, world=1)
    for step in range(60):
        whole.records(whole.wants(step))
    assert len(whole.corpora[0].store.read) == len(set(whole.corpora[0].store.read))


def manifest(shards, samples, root="nodes://set"):
    listed = tuple(Shard(f"{n}.tar", samples, 1, "", "") for n in range(shards))
    return Manifest("set", root, "image", ("height", "width"), {}, (), listed, 0, None)


def ordered(recipe, kind):
    """A recipe with `stream.order` changed."""
    return recipe.model_copy(update={"stream": recipe.stream.model_copy(update={"order": kind})})


def stores_and_words(caplog, told):
    """Shards that lie elsewhere, of which something is told, and shards here; nothing heard yet."""
    for root, words in (("nodes://set", told), ("here", "")):
        caplog.clear()
        yield ShardStore(manifest(3, 5, root), None, room=0, patience=None), words


@pytest.mark.parametrize(("samples", "kept"), [(100, INDEXES), (10_000, 209), (10**6, 64)])
def test_fewer_large_indexes_are_kept(samples, kept):
    assert indexes_kept(manifest(2_000, samples)) == kept


@pytest.mark.parametrize(
    ("kind", "lanes", "world", "node", "told"),
    [
        ("lanes", 256, 64, 1, ""),
        ("lanes", 256, 512, 8, ""),  # two neighbours share a lane, on one node
        ("lanes", 256, 512, 1, "256 lanes for 512 ranks: 2 of them share each lane"),
        ("lanes", 250, 64, 8, "250 lanes for 64 ranks: 32 of them share"),
        ("global", 256, 64, 8, "each of 64 ranks reads in all of them"),
        ("global", 256, 8, 8, ""),
        ("sequential", 256, 64, 8, ""),
    ],
)
def test_nodes_that_would_fetch_the_same_are_told(
    recipe, caplog, monkeypatch, kind, lanes, world, node, told
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(node))
    chosen = ordered(recipe, kind)
    for store, words in stores_and_words(caplog, told):
        say_shared_lanes(chosen, lanes, store, world)
        assert words in caplog.text
        assert bool(caplog.text) == bool(words)


@pytest.mark.parametrize(
    ("kind", "lanes", "world", "node", "told"),
    [
        ("lanes", {"a": 200, "b": 56}, 64, 8, ""),
        ("lanes", {"a": 250, "b": 6}, 64, 8, "b of the mixture have 6 lanes for 8 nodes"),
        ("lanes", {"a": 4, "b": 6}, 64, 8, "a, b of the mixture have 4, 6 lanes for 8 nodes"),
        ("lanes", {"a": 1, "b": 1}, 8, 8, ""),
        ("global", {"a": 200, "b": 56}, 64, 8, "elsewhere (a, b): each of 64 ranks reads in all"),
        ("global", {"a": 200, "b": 56}, 8, 8, ""),
    ],
)
def test_nodes_that_would_fetch_the_same_of_a_mixture_are_told(
    recipe, caplog, monkeypatch, kind, lanes, world, node, told
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(node))
    chosen = ordered(recipe, kind)
    for store, words in stores_and_words(caplog, told):
        say_shared_in_mixture(chosen, lanes, [store, store], world)
        assert words in caplog.text
        assert bool(caplog.text) == bool(words)
