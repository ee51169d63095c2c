"""What is decided of many steps in one go is what is decided of each alone."""

import numpy as np
import pytest

from sslpipe.modalities.parts import Part
from sslpipe.rng import Place
from sslpipe.stream import booking
from sslpipe.stream.flights import tasks_of
from sslpipe.stream.packed import Wants
from sslpipe.stream.tasks import ALONE, DECODE, FILE, PLACE, READ, ROOM, ROW, shard_of
from tests.streaming import load

RECIPE = "stream.batch_size=16"


def booked(pipe, steps, kind=DECODE):
    loader = pipe.loading._loader
    return loader._flights.book(pipe.source.planned(steps), kind)


def same(one, other):
    assert one.size == other.size
    assert (one.task, one.widths, one.kind) == (other.task, other.widths, other.kind)
    np.testing.assert_array_equal(one.table, other.table)
    np.testing.assert_array_equal(one.members, other.members)
    for mine, theirs in zip(one.records, other.records, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(one.drawn, other.drawn, strict=True):
        assert mine.are_of(epochs=theirs.epochs, uids=theirs.uids, extents=theirs.extents)
        for name, table in mine.params.items():
            np.testing.assert_array_equal(table, theirs.params[name])


@pytest.mark.parametrize("kind", [DECODE, ALONE, READ])
def test_steps_booked_together_are_those_booked_alone(packed, kind):
    with load(packed, "run.workers=0", RECIPE) as pipe:
        together = booked(pipe, range(3, 10), kind)
        assert len(together) == 7
        for step, found in zip(range(3, 10), together, strict=True):
            (alone,) = booked(pipe, [step], kind)
            same(found, alone)
            assert bool(found.drawn) == (kind == DECODE)


def test_nothing_is_drawn_for_what_is_only_read(packed, monkeypatch):
    with load(packed, "run.workers=0", RECIPE) as pipe:
        whole = pipe.load_share(2)

        def drawn(*_, **asked):
            pytest.fail("drew for samples that nobody decodes")

        monkeypatch.setattr(Part, "instructions", drawn)
        assert [found.widths for found in booked(pipe, [2], READ)] == [(0,)]
        read = pipe.loading.load(2, READ)
        assert (read.keys, read.columns) == (whole.keys, ())
        np.testing.assert_array_equal(read.uids, whole.uids)


def test_tasks_hold_every_sample_once_with_its_file_and_a_place_of_its_own(packed, monkeypatch):
    monkeypatch.setattr(booking, "FEW", 3)
    monkeypatch.setattr(booking, "MUCH", 0)
    with load(packed, "run.workers=0", RECIPE) as pipe:
        for found in booked(pipe, range(5)):
            tasks, seen = tasks_of(found, (0, found.size)), []
            assert [len(task.table) for task in tasks] == [3, 3, 3, 3, 3, 1]
            for task in tasks:
                seen += [
                    (place, *shard_of(file), row)
                    for place, file, row in task.table[:, [PLACE, FILE, ROW]].tolist()
                ]
            wants = found.wants
            columns = np.arange(16), wants.corpora, wants.shards, wants.rows
            assert sorted(seen) == list(zip(*(each.tolist() for each in columns), strict=True))
            starts, sizes = found.table[:, ROOM], found.table[:, ROOM + 1]
            order = np.argsort(starts)
            assert found.rooms_at <= starts.min()
            assert ((starts + sizes)[order][:-1] <= starts[order][1:]).all()
            assert (starts + sizes).max() <= found.size


def test_what_was_drawn_ahead_is_drawn_anew_for_other_samples(packed):
    """A substitute, another epoch, or sides that the index had wrong."""
    with load(packed, "run.workers=0", RECIPE) as pipe:
        share = pipe.load_share(0)
        (drawn,), (column,) = share.drawn, share.columns
        truth = pipe.make_batch(share, 0)
        asked = {"epochs": share.epochs, "uids": share.uids, "extents": column.extents}
        assert drawn.are_of(**asked)
        for name in asked:
            other = asked[name].copy()
            other[5] += 1
            assert not drawn.are_of(**{**asked, name: other})
        (part,) = pipe.parts
        spoiled = drawn._replace(uids=drawn.uids + 1, params={})
        place = Place(0, pipe.source.slots_at(0)[: share.rows], pipe.spec.global_size)
        tables = part.decide(
            column, epochs=share.epochs, uids=share.uids, place=place, drawn=spoiled
        )
        for name, table in tables.params.items():
            np.testing.assert_array_equal(table, truth.params[name].numpy())


def test_samples_joined_are_those_behind_each_other(packed):
    with load(packed, "run.workers=0", RECIPE) as pipe:
        some = pipe.source.planned(range(3))
        whole = Wants.joined(some)
        assert len(whole) == 48
        np.testing.assert_array_equal(whole.rows[16:32], some[1].rows)
        assert Wants.joined(some[:1]) is some[0]
