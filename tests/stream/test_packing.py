"""Rows packed from documents: every step once, as a slow packer would, any row by its number."""

from itertools import pairwise

import numpy as np
import pytest

from sslpipe.stream.packing import (
    PACKERS,
    SENTENCE_PACKERS,
    Sentences,
    best_fit,
    concat,
    one,
    overlap,
    split,
)
from sslpipe.stream.rows import Anchor, Rows

LENGTH = 64


def lengths_of(count, seed=0):
    """Log-normal, as documents are, with some that are empty, exact or far too long."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(3, 1.2, count).astype(np.int64), 1000)
    odd = [0, LENGTH, LENGTH + 1, 5 * LENGTH, 1][:count]
    lengths[rng.permutation(count)[: len(odd)]] = odd
    return lengths


def spread(segments, lengths):
    """The (document, step) at every place of every row; -1 where there is none."""
    made = np.full((segments.row_count, LENGTH, 2), -1)
    for document, start, length, row, column in zip(*segments, strict=True):
        place = made[row, column : column + length]
        assert (place == -1).all()  # nothing lies on another
        assert len(place) == length > 0
        place[:, 0], place[:, 1] = document, start + np.arange(length)
        assert start + length <= lengths[document]
    return made


@pytest.mark.parametrize("name", ["split", "concat", "best_fit"])
@pytest.mark.parametrize("count", [1, 5, 17, 400])
def test_every_step_of_every_document_once(name, count):
    lengths = lengths_of(count)
    made = spread(PACKERS[name](lengths, LENGTH), lengths).reshape(-1, 2)
    made = made[made[:, 0] >= 0]
    wanted = [(d, s) for d, length in enumerate(lengths) for s in range(length)]
    assert sorted(map(tuple, made.tolist())) == wanted
    if name == "concat":
        assert made.tolist() == [list(pair) for pair in wanted]  # in their order, too


def test_one_takes_the_beginning_of_each():
    segments = one(np.array([3, 0, 100, 64]), LENGTH)
    assert segments.documents.tolist() == [0, 2, 3]
    assert segments.lengths.tolist() == [3, 64, 64]
    assert segments.rows.tolist() == [0, 1, 2]
    assert not segments.starts.any()


def test_split_fills_all_but_the_last_piece():
    segments = split(np.array([130, 64]), LENGTH)
    assert segments.lengths.tolist() == [64, 64, 2, 64]
    assert segments.starts.tolist() == [0, 64, 128, 0]


@pytest.mark.parametrize("seed", range(3))
def test_overlap_asks_for_every_step_but_the_first_once(seed):
    lengths = lengths_of(200, seed)
    asked = {document: [] for document in range(200)}
    for document, start, length, _, column in zip(*overlap(lengths, LENGTH), strict=True):
        assert column == 0
        assert 0 < length <= LENGTH
        assert start + length <= lengths[document]
        # what a model that guesses from left to right is asked for in this row
        asked[document] += range(start + 1, start + length)
    assert asked == {d: list(range(1, n)) for d, n in enumerate(lengths.tolist())}
    rows = overlap(lengths, LENGTH).rows
    assert rows.tolist() == list(range(len(rows)))
    alone = [int(d) for d in overlap(np.array([1, 0, 2]), LENGTH).documents]
    assert alone == [0, 2]  # a single step has a row, in which nothing is asked for


def test_concat_cuts_where_rows_end():
    segments = concat(np.array([60, 0, 10, 64]), LENGTH)
    assert list(zip(*segments, strict=True)) == [
        (0, 0, 60, 0, 0), (2, 0, 4, 0, 60), (2, 4, 6, 1, 0), (3, 0, 58, 1, 6), (3, 58, 6, 2, 0),
    ]  # fmt: skip


def slow_best_fit(lengths):
    """Free spaces in a list, searched from the first: the row of each piece."""
    pieces = [
        (min(LENGTH, n - start), document, start)
        for document, n in enumerate(lengths.tolist())
        for start in range(0, n, LENGTH)
    ]
    pieces.sort(key=lambda piece: -piece[0])  # stable
    free, rows, waited = [], {}, []
    clock = 0
    for length, document, start in pieces:
        fits = [r for r, space in enumerate(free) if space >= length]
        if fits:
            row = min(fits, key=lambda r: (free[r], waited[r]))
        else:
            row = len(free)
            free.append(LENGTH)
            waited.append(0)
        rows[document, start] = row
        free[row] -= length
        waited[row] = clock = clock + 1  # since when it has this much space
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_best_fit_is_that_of_a_slow_search(seed):
    lengths = lengths_of(300, seed)
    segments = best_fit(lengths, LENGTH)
    found = {(d, s): r for d, s, r in zip(*segments[:2], segments.rows, strict=True)}
    assert found == slow_best_fit(lengths)


def test_best_fit_fills_and_cuts_nothing_that_fits():
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(6.2, 1, 4096).astype(np.int64))
    segments = best_fit(lengths, 2048)
    assert segments.lengths.sum() / (segments.row_count * 2048) > 0.99
    pieces = np.bincount(segments.documents)
    assert (pieces[lengths <= 2048] == 1).all()


def parted(lengths, seed=2):
    """Documents as sentences, some longer than a row."""
    rng, sizes = np.random.default_rng(seed), []
    for length in lengths:
        cuts = rng.permutation(np.arange(1, length))[: length // 20]
        sizes.append(np.diff([0, *sorted(cuts), length]) if length else np.zeros(0, int))
    return Sentences(np.array([len(s) for s in sizes]), np.concatenate(sizes).astype(np.int64))


def slow_sentences(found, apart):
    """Rows as lists of (document, first step, steps): fairseq's `complete`, nothing truncated."""
    rows, room, at = [], 0, 0
    for document, count in enumerate(found.counts.tolist()):
        step = 0
        if apart:
            room = 0
        for size in found.lengths[at : at + count].tolist():
            while size:
                taken = min(size, LENGTH)
                if taken > room:
                    rows.append([])
                    room = LENGTH
                if rows[-1] and rows[-1][-1][0] == document:
                    rows[-1][-1][2] += taken
                else:
                    rows[-1].append([document, step, taken])
                room, step, size = room - taken, step + taken, size - taken
        at += count
    return rows


@pytest.mark.parametrize("name", SENTENCE_PACKERS)
@pytest.mark.parametrize("count", [1, 5, 17, 400])
def test_whole_sentences_as_a_slow_loop_lays_them(name, count):
    lengths = lengths_of(count)
    found = parted(lengths)
    made = SENTENCE_PACKERS[name](found, LENGTH)
    rows = [[] for _ in range(made.row_count)]
    for document, start, length, row, column in zip(*map(np.ndarray.tolist, made), strict=True):
        assert column == sum(piece[2] for piece in rows[row])
        rows[row].append([document, start, length])
    assert rows == slow_sentences(found, name == "doc_sentences")
    steps = spread(made, lengths).reshape(-1, 2)
    wanted = [[d, s] for d, length in enumerate(lengths) for s in range(length)]
    assert steps[steps[:, 0] >= 0].tolist() == wanted  # every one once, in their order


@pytest.mark.parametrize("name", SENTENCE_PACKERS)
def test_no_sentence_that_fits_is_cut(name):
    found = parted(lengths_of(200))
    made = SENTENCE_PACKERS[name](found, LENGTH)
    owners = np.repeat(np.arange(200), found.counts)
    firsts = (np.cumsum(found.counts) - found.counts)[owners]
    ends = np.cumsum(found.lengths)
    begins = ends - found.lengths - (ends - found.lengths)[firsts]
    short = found.lengths <= LENGTH
    inside = {*zip(owners[short].tolist(), begins[short].tolist(), strict=True)}
    cuts = {*zip(made.documents.tolist(), made.starts.tolist(), strict=True)}
    long = zip(owners[~short], begins[~short], found.lengths[~short], strict=True)
    allowed = {(int(d), int(b) + s) for d, b, n in long for s in range(0, n, LENGTH)}
    assert cuts <= inside | allowed
    assert len(cuts & allowed) > 5
    if name == "doc_sentences":
        assert len({*made.rows.tolist()}) == len(made.rows)  # a piece a row


def test_no_documents_make_no_rows():
    nothing = Sentences(np.zeros(3, dtype=np.int64), np.zeros(0, dtype=np.int64))
    for packer in SENTENCE_PACKERS.values():
        assert packer(nothing, LENGTH).row_count == 0


# ---- rows of a stream


def stream(documents, *, window, packer=best_fit, seed=1, asked=None):
    """A stream whose document at position p has a length that follows from p."""
    table = lengths_of(997)

    def lengths(positions):
        if asked is not None:
            asked.append(len(positions))
        return table[positions * 31 % 997]

    rows = Rows(documents, lambda at: packer(lengths(at), LENGTH), window=window, seed=seed)
    return rows, lambda position: int(table[position * 31 % 997])


def content(segments, place):
    """What stands in one of the rows that were asked for."""
    here = segments.rows == place
    return sorted(zip(*(column[here].tolist() for column in segments), strict=True))


@pytest.mark.parametrize("name", PACKERS)
def test_an_epoch_has_every_document_and_rows_follow_by_number(name):
    rows, length_of = stream(300, window=64, packer=PACKERS[name])
    first, second = rows.epoch_rows(0), rows.epoch_rows(1)
    every = rows.at(range(first + second))
    for epoch, span in enumerate(((0, first), (first, first + second))):
        inside = (every.rows >= span[0]) & (every.rows < span[1])
        steps = {}
        columns = every.positions[inside], every.starts[inside], every.lengths[inside]
        for p, start, length in zip(*columns, strict=True):
            again = int(name == "overlap" and start > 0)  # the last step of the piece before
            steps[int(p)] = steps.get(int(p), 0) + int(length) - again
        limit = LENGTH if name == "one" else 10**9
        positions = range(300 * epoch, 300 * (epoch + 1))
        assert steps == {p: min(length_of(p), limit) for p in positions if length_of(p)}


def test_any_row_alone_is_what_it_is_among_others():
    rows, _ = stream(300, window=64)
    count = rows.epoch_rows(0) + 20
    every = rows.at(range(count))
    other, _ = stream(300, window=64)
    for row in np.random.default_rng(0).permutation(count)[:60].tolist():
        alone = other.at([row])
        expected = [(p, s, n, 0, c) for p, s, n, _, c in content(every, row)]
        assert content(alone, 0) == expected


def test_rows_of_a_window_are_shuffled_by_the_seed():
    plain = best_fit(lengths_of(64), LENGTH)
    made = [stream(300, window=64, seed=seed)[0].window(0) for seed in (1, 1, 2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0].documents, made[2].documents)
    longest = [made[0].lengths[made[0].rows == row].max() for row in range(made[0].row_count)]
    assert longest != sorted(longest, reverse=True)
    assert plain.row_count > 1


def test_an_anchor_finds_the_row_without_what_came_before():
    rows, _ = stream(1000, window=64)
    row = rows.epoch_rows(0) + rows.epoch_rows(1) + 7
    expected, anchor = content(rows.at([row]), 0), rows.anchor(row)
    assert anchor.window // 16 == 2  # windows of the third epoch
    asked = []
    resumed, _ = stream(1000, window=64, asked=asked)
    resumed.resume(Anchor(*anchor))
    assert content(resumed.at([row]), 0) == expected
    assert asked == [64]
    assert content(resumed.at([0]), 0) == content(rows.at([0]), 0)  # before it, by counting anew


def test_a_billion_documents_are_not_planned_before_the_first_row():
    asked = []
    rows, _ = stream(10**9, window=1024, asked=asked)
    rows.at(range(8))
    assert sum(asked) <= 2 * 1024


# ---- rows of similar length


def bucketed(documents, *, window, size, packer=split, seed=1):
    """As `stream`, in batches of `size` rows of similar length."""
    table = lengths_of(997)
    return Rows(
        documents,
        lambda positions: packer(table[positions * 31 % 997], LENGTH),
        window=window,
        seed=seed,
        bucket=size,
    )


def row_lengths(segments, count):
    return np.bincount(segments.rows, weights=segments.lengths, minlength=count).astype(int)


@pytest.mark.parametrize(("window", "size"), [(64, 7), (64, 16), (300, 8), (50, 60)])
def test_buckets_have_the_rows_of_a_window_and_similar_ones_in_a_batch(window, size):
    rows, plain = bucketed(300, window=window, size=size), stream(300, window=window, packer=split)
    count = rows.epoch_rows(0)
    assert count == plain[0].epoch_rows(0)
    every = rows.at(range(count))
    same = plain[0].at(range(count))
    pieces = zip(every.positions, every.starts, every.lengths, strict=True)
    assert sorted(pieces) == sorted(zip(same.positions, same.starts, same.lengths, strict=True))
    assert every.positions.tolist() != same.positions.tolist()
    lengths = row_lengths(every, count)
    if window == 300:  # whole batches: sorted, they follow each other without overlap
        assert count % size  # the last one has the shortest
        whole = lengths[: count // size * size].reshape(-1, size)
        bounds = sorted((int(b.min()), int(b.max())) for b in whole)
        assert all(high <= low for (_, high), (low, _) in pairwise(bounds))
        assert lengths[count // size * size :].max() <= whole.min()
        order = [int(b.max()) for b in whole]
        assert order != sorted(order)


def test_batches_that_windows_share_are_of_short_rows():
    rows = bucketed(600, window=100, size=16)
    count = rows.epoch_rows(0)
    lengths = row_lengths(rows.at(range(count)), count)
    padded = lengths[: count // 16 * 16].reshape(-1, 16).max(1) * 16
    plain, _ = stream(600, window=100, packer=split)
    other = row_lengths(plain.at(range(count)), count)
    unsorted = other[: count // 16 * 16].reshape(-1, 16).max(1) * 16
    assert padded.sum() < 1.25 * lengths.sum()
    assert unsorted.sum() > 1.5 * lengths.sum()


def test_a_bucketed_row_alone_and_from_any_anchor_is_what_it_is_among_others():
    rows = bucketed(300, window=64, size=7)
    count = rows.epoch_rows(0) + 100
    every = rows.at(range(count))
    other = bucketed(300, window=64, size=7)
    for row in np.random.default_rng(0).permutation(count)[:60].tolist():
        assert content(other.at([row]), 0) == [
            (*piece[:3], 0, piece[4]) for piece in content(every, row)
        ]
        third = bucketed(300, window=64, size=7)
        third.resume(rows.anchor(row))
        assert content(third.at([row]), 0) == content(other.at([row]), 0)


# ---- at scale


def test_a_billion_documents_are_planned_as_they_are_asked_for():
    asked = []
    rows, _ = stream(10**9, window=1024, asked=asked)
    rows.at(range(256))
    assert sum(asked) <= 4 * 1024  # nothing but the windows of the first batch
    late = Anchor(976_000, 123_456_789)
    rows.resume(late)
    asked.clear()
    rows.at(range(late.row, late.row + 64))
    assert sum(asked) <= 2 * 1024
    assert rows.anchor(late.row) == late


def test_the_end_of_a_long_epoch_is_reached_from_its_anchor_at_once():
    asked = []
    rows, _ = stream(10**6, window=1024, asked=asked)
    window = 10**6 // 1024  # the last one, which is short
    anchor = Anchor(window, 10**6)
    rows.resume(anchor)
    found = rows.at([anchor.row])
    assert asked == [10**6 % 1024]
    assert found.positions.min() >= window * 1024
