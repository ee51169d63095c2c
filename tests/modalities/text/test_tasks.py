"""Spans and T5's corruption against their official codes, written slowly from what those say."""

import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

import sslpipe
from sslpipe.batch import IGNORED
from sslpipe.errors import RecipeError
from sslpipe.modalities.text.corruption import SpanCorruption, cut_out
from sslpipe.modalities.text.denoisers import DenoiserMixture
from sslpipe.modalities.text.pieces import Pieces
from sslpipe.modalities.text.sheet import ACROSS, Cell, in_lines, strips
from sslpipe.modalities.text.spans import MaskedSpans
from sslpipe.modalities.text.tasks import KEEP, NOTHING, LaidRows
from sslpipe.modalities.text.vocabulary import Bytes
from sslpipe.recipe import parse_recipe
from sslpipe.stream.source import Column

PLAIN, T5 = Bytes(), Bytes(sentinels=100)


def pieces(rows, *, epoch=0, uids=None, special=False):
    """Pieces of rows that are given as lengths, [[5, 3], [9]]; a document each."""
    table = [(r, sum(row[:i]), 0, n) for r, row in enumerate(rows) for i, n in enumerate(row)]
    segments = np.array(table)
    count = len(segments)
    uids = np.arange(100, 100 + count) if uids is None else np.array(uids)
    return Pieces(
        np.full(count, epoch), uids, segments, segments[:, 3],
        np.full((count, 2), special), len(rows),
    )  # fmt: skip


# --- spans


def official_spans(length, rng, *, share=0.15, p=0.2, longest=10):
    """masking.py: PairWithSpanMaskingScheme, of words that are a token each."""
    chances = np.array([p * (1 - p) ** (i - 1) for i in range(1, longest + 1)])
    chances /= chances.sum()
    wanted, hidden = math.ceil(length * share), set()
    while len(hidden) < wanted:
        size = rng.choice(range(1, longest + 1), p=chances)
        anchor = rng.integers(length)
        if anchor in hidden:
            continue
        for place in range(anchor, min(anchor + size, length)):
            if len(hidden) >= wanted:
                break
            hidden.add(place)
    return sorted(hidden)


def runs(hidden):
    """Lengths of runs of neighbours."""
    found = []
    for place in range(len(hidden)):
        if place and hidden[place] == hidden[place - 1] + 1:
            found[-1] += 1
        else:
            found.append(1)
    return found


def test_spans_hide_exactly_what_spanbert_hides():
    lengths = [1, 2, 7, 20, 21, 40, 63, 100]
    table = MaskedSpans().draw(pieces([[n] for n in lengths]), "s", 0, PLAIN, 100)
    for row, length in zip(table, lengths, strict=True):
        assert (row[:length] != NOTHING).sum() == math.ceil(0.15 * length)
        assert (row[length:] == NOTHING).all()
    inner = MaskedSpans().draw(pieces([[20]] * 50, special=True), "s", 0, PLAIN, 20)
    assert (inner[:, [0, -1]] == NOTHING).all()
    assert ((inner != NOTHING).sum(1) == math.ceil(0.15 * 18)).all()


def test_spans_are_distributed_as_officially():
    """Runs of hidden tokens, and how often each place is hidden, of 3,000 documents of 60."""
    count, length = 3000, 60
    table = MaskedSpans().draw(pieces([[length]] * count), "s", 0, PLAIN, length)
    ours = [np.flatnonzero(row != NOTHING).tolist() for row in table]
    rng = np.random.default_rng(1)
    theirs = [official_spans(length, rng) for _ in range(count)]
    together = [[n for one in x for n in runs(one)] for x in (ours, theirs)]
    seen = [np.bincount(np.minimum(lengths, 9), minlength=10)[1:] for lengths in together]
    assert stats.chi2_contingency(seen).pvalue > 1e-3
    places = [np.bincount(np.concatenate(x).astype(int), minlength=length) for x in (ours, theirs)]
    # places within a document are not independent, which makes chi2 too strict: a wide margin
    assert stats.chi2_contingency(places).statistic < 2 * length


def test_lengths_of_spans_are_geometric_and_renormalised():
    sizes = MaskedSpans().sizes(np.random.default_rng(0).random(200_000))
    shares = np.bincount(sizes, minlength=11)[1:] / len(sizes)
    expected = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    assert (expected[0], expected[-1]) == pytest.approx((0.2241, 0.0301), abs=5e-5)
    assert np.abs(shares - expected).max() < 4 * math.sqrt(0.25 / len(sizes))
    assert sizes.mean() == pytest.approx(3.797, abs=0.03)


@pytest.mark.parametrize("per", ["span", "token"])
def test_what_is_put_there_is_80_10_10_and_of_a_span_alike(per):
    table = MaskedSpans(per=per).draw(pieces([[64]] * 2000), "s", 0, PLAIN, 64)
    hidden = table[table != NOTHING]
    margin = 4 * math.sqrt(0.16 / len(hidden)) * (2.5 if per == "span" else 1)
    assert (hidden == PLAIN.mask).mean() == pytest.approx(0.8, abs=margin)
    assert (hidden == KEEP).mean() == pytest.approx(0.1, abs=margin)
    put = hidden[(hidden != PLAIN.mask) & (hidden != KEEP)]
    assert put.min() >= PLAIN.first
    assert put.max() < PLAIN.size
    kinds = np.select([table == NOTHING, table == PLAIN.mask, table == KEEP], [-1, 0, 1], 2)
    both = (kinds[:, 1:] >= 0) & (kinds[:, :-1] >= 0)
    alike = (kinds[:, 1:] == kinds[:, :-1])[both].mean()
    # neighbours may belong to two spans that touch; alone, .66 are alike by chance
    assert alike > 0.85 if per == "span" else abs(alike - 0.66) < 0.03


def test_random_tokens_are_no_sentinels():
    table = MaskedSpans(mask=0.0, random=1.0).draw(pieces([[64]] * 500), "s", 0, T5, 64)
    put = table[table != NOTHING]
    assert put.max() == PLAIN.size - 1
    assert put.min() == PLAIN.first


def test_rows_without_any_token_hide_nothing():
    """A document of which a vocabulary makes no token, alone in its batch."""
    table = MaskedSpans().draw(pieces([[0], [0]]), "s", 0, PLAIN, 8)
    assert (table == NOTHING).all()
    table = MaskedSpans().draw(pieces([[0], [3]]), "s", 0, PLAIN, 8)
    assert (table != NOTHING).sum(1).tolist() == [0, 1]


def test_a_piece_keeps_its_spans_in_any_row():
    alone = MaskedSpans().draw(pieces([[40]], uids=[7]), "s", 0, PLAIN, 64)[0, :40]
    packed = MaskedSpans().draw(pieces([[20, 40], [64]], uids=[5, 7, 9]), "s", 0, PLAIN, 64)
    assert (packed[0, 20:60] == alone).all()
    later = MaskedSpans().draw(pieces([[40]], uids=[7], epoch=1), "s", 0, PLAIN, 64)[0, :40]
    assert ((later != NOTHING) != (alone != NOTHING)).any()


# --- T5

RAW = {32: (34, 8), 64: (70, 14), 128: (141, 29), 256: (284, 58), 512: (568, 114),
       1024: (1137, 229), 2048: (2274, 456)}  # fmt: skip


def official_helper(inputs, share=0.15, mean=3.0):
    """random_spans_helper: the most raw tokens that become `inputs`, and the targets of them."""

    def lengths(tokens):
        cut = round(tokens * share)
        spans = round(cut / mean)
        return tokens - cut + spans + 1, cut + spans + 1

    tokens = inputs
    while lengths(tokens + 1)[0] <= inputs:
        tokens += 1
    return tokens, lengths(tokens)[1]


@pytest.mark.parametrize("inputs", RAW)
def test_sizes_are_the_official_table(inputs):
    tokens, targets = RAW[inputs]
    assert official_helper(inputs) == (tokens, targets)
    sizes = SpanCorruption().sizes(np.array([tokens]))
    assert (sizes.left.item(), sizes.written.item()) == (inputs, targets)
    assert SpanCorruption().widths(tokens) == (inputs, targets)


def test_of_short_rows_as_officially():
    sizes = SpanCorruption().sizes(np.array([1, 2, 3, 5]))
    assert sizes.cut.tolist() == [0, 1, 1, 1]
    assert sizes.left.tolist() == [2, 3, 4, 6]
    assert sizes.written.tolist() == [1, 3, 3, 3]


def official_mask(length, rng, share=0.15, mean=3.0):
    """random_spans_noise_mask with random_segmentation, by shuffling ones among items."""

    def segmentation(items, parts):
        begins = [1] * (parts - 1) + [0] * (items - parts)
        rng.shuffle(begins)
        sizes = [1]
        for begin in begins:
            if begin:
                sizes.append(1)
            else:
                sizes[-1] += 1
        return sizes

    original, length = length, max(length, 2)
    cut = min(max(round(np.float32(length) * np.float32(share)), 1), length - 1)
    spans = max(round(cut / mean), 1)
    goes, stays = segmentation(cut, spans), segmentation(length - cut, spans)
    mask = []
    for stay, go in zip(stays, goes, strict=True):
        mask += [False] * stay + [True] * go
    return mask[:original]


def official_sides(tokens, mask, size, end):
    """noise_span_to_unique_sentinel and nonnoise_span_to_unique_sentinel, and the end."""

    def side(hide):
        out, sentinel = [], size
        for place, token in enumerate(tokens):
            if not hide[place]:
                out.append(token)
            elif place == 0 or not hide[place - 1]:
                sentinel -= 1
                out.append(sentinel)
        return [*out, end]

    return side(mask), side([not hide for hide in mask])


def corrupted(rows, *, length, vocabulary=T5, epoch=0, uids=None):
    """Tokens 10, 11 ... of each row, corrupted; and the segments of both sides."""
    made = pieces(rows, epoch=epoch, uids=uids)
    task = SpanCorruption()
    table = task.draw(made, "t5", 0, vocabulary, length)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    documents = torch.full_like(tokens, -1)
    for r, row in enumerate(rows):
        tokens[r, : sum(row)] = torch.arange(10, 10 + sum(row)) % 250 + 4
        documents[r, : sum(row)] = torch.repeat_interleave(
            torch.arange(len(row)), torch.tensor(row)
        )
    laid = LaidRows(tokens, torch.stack([documents, torch.zeros_like(documents)]))
    return tokens, task.apply(laid, torch.from_numpy(table), vocabulary), table


def real(row, documents):
    return row[documents >= 0].tolist()


@pytest.mark.parametrize("length", [2, 3, 5, 17, 64, 141])
def test_rows_are_what_the_official_functions_make_of_the_same_mask(length):
    tokens, asked, table = corrupted([[length]] * 20, length=length)
    width = SpanCorruption().widths(length)[0]
    for row in range(20):
        kept = table[row, 0, :width][table[row, 1, :width] == KEEP]
        mask = [place not in set(kept.tolist()) for place in range(length)]
        left, written = official_sides(tokens[row].tolist(), mask, T5.size, T5.end)
        assert real(asked.rows.tokens_BL[row], asked.rows.segments_2BL[0, row]) == left
        assert real(asked.targets_BL[row], asked.segments_2BL[0, row]) == written
        assert mask[-1]
        assert not mask[0]


def test_the_example_of_the_paper_s_code():
    mask = [place in (2, 3, 7) for place in range(8)]
    left, written = official_sides(range(10, 18), mask, 32128, 1)
    assert left == [10, 11, 32127, 14, 15, 16, 32126, 1]
    assert written == [32127, 12, 13, 32126, 17, 1]


def test_masks_are_distributed_as_officially():
    """All masks of 12 tokens, of which 4 in 2 spans are cut out: 3 x 7 of them, alike likely."""
    task, count = SpanCorruption(share=0.33, mean_span=2.0), 6000
    sizes = task.sizes(np.full(count, 12))
    assert (sizes.cut[0], sizes.spans[0]) == (4, 2)
    table = cut_out(sizes, np.random.default_rng(0).random((count, 24)), 12)
    ours = np.unique(table, axis=0, return_counts=True)
    rng = random.Random(0)
    theirs = {tuple(official_mask(12, rng, 0.33, 2.0)) for _ in range(2000)}
    assert {tuple(row) for row in ours[0].tolist()} == theirs
    assert len(theirs) == 3 * 7
    assert stats.chisquare(ours[1]).pvalue > 1e-3


def merged(left, written, vocabulary):
    """The original of both sides, by their sentinels; their ends dropped."""
    last = vocabulary.size - vocabulary.sentinels
    spans, current = {}, None
    for token in written[:-1]:
        if token >= last:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    out = []
    for token in left[:-1]:
        out += spans.pop(token) if token >= last else [token]
    assert not spans
    return out


def test_both_sides_together_are_the_original():
    rows = [[60], [1], [30, 20, 3], [2], [61, 2, 1]]
    tokens, asked, _ = corrupted(rows, length=64)
    for row, sizes in enumerate(rows):
        left = real(asked.rows.tokens_BL[row], asked.rows.segments_2BL[0, row])
        written = real(asked.targets_BL[row], asked.segments_2BL[0, row])
        assert merged(left, written, T5) == tokens[row, : sum(sizes)].tolist()
        used = [[t for t in side if t >= T5.size - T5.sentinels] for side in (left, written)]
        assert used[0] == used[1] == [T5.size - 1 - k for k in range(len(used[0]))]


def test_each_token_stays_in_its_document():
    _, asked, table = corrupted([[30, 20, 14]], length=64)
    border = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 20, 14]))
    places = torch.from_numpy(table[0, 0])
    found = torch.cat([asked.rows.segments_2BL[0, 0], asked.segments_2BL[0, 0]])
    assert torch.equal(found[places >= 0], border[places[places >= 0]])
    for segments in (asked.rows.segments_2BL, asked.segments_2BL):
        documents, positions = segments[:, 0]
        for number in range(3):
            here = positions[documents == number]
            assert here.tolist() == list(range(len(here)))


def test_a_bad_document_is_neither_read_nor_asked_for():
    made = pieces([[30, 20, 14]])
    task = SpanCorruption()
    table = torch.from_numpy(task.draw(made, "t5", 0, T5, 64))
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 20, 14]))[None]
    documents = torch.where(documents == 1, -1, documents)
    rows = LaidRows(torch.full((1, 64), 50), torch.stack([documents, torch.zeros_like(documents)]))
    asked = task.apply(rows, table, T5)
    bad = (table[0, 0] >= 30) & (table[0, 0] < 50)
    width = task.widths(64)[0]
    assert (asked.rows.tokens_BL[0][bad[:width]] == T5.pad).all()
    assert (asked.targets_BL[0][bad[width:]] == IGNORED).all()
    assert (asked.targets_BL[0] != IGNORED).sum() > 0


def test_the_key_is_that_of_the_first_piece_of_the_row():
    _, alone, _ = corrupted([[40, 20]], length=64, uids=[7, 8])
    _, among, _ = corrupted([[64], [40, 20], [64]], length=64, uids=[1, 7, 8, 2])
    assert torch.equal(alone.rows.tokens_BL[0], among.rows.tokens_BL[1])
    assert torch.equal(alone.targets_BL[0], among.targets_BL[1])
    _, later, _ = corrupted([[40, 20]], length=64, uids=[7, 8], epoch=1)
    assert not torch.equal(alone.rows.tokens_BL, later.rows.tokens_BL)
    assert not torch.equal(among.rows.tokens_BL[0], among.rows.tokens_BL[2])


# --- UL2


def test_a_row_is_corrupted_in_one_of_seven_ways():
    """Table of the reference at 1,006 raw tokens is of rows cut for each denoiser; sizes agree."""
    sizes = {(3.0, 0.5): (766, 512), (8.0, 0.15): (588, 100), (64.0, 0.15): (600, 92)}
    for (mean, share), (tokens, targets) in sizes.items():
        found = SpanCorruption(mean_span=mean, share=share).sizes(np.array([tokens]))
        assert (found.left.item(), found.written.item()) == (512, targets)
    task, rows, length = DenoiserMixture(), 700, 96
    made = pieces([[length]] * rows)
    table = task.draw(made, "t5", 0, T5, length)
    read, written = task.widths(length)
    assert table.shape == (rows, 2, read + written)
    tokens = torch.arange(length).expand(rows, -1) + 50
    zeros = torch.zeros(rows, length, dtype=torch.int64)
    asked = task.apply(LaidRows(tokens, torch.stack([zeros, zeros])), torch.from_numpy(table), T5)
    kinds = asked.rows.tokens_BL[:, 0] - (T5.size - T5.sentinels)
    shares = torch.bincount(kinds, minlength=3) / rows
    assert (shares - torch.tensor([2, 4, 1]) / 7).abs().max() < 4 * 0.5 / rows**0.5
    for row in range(rows):
        left = real(asked.rows.tokens_BL[row], asked.rows.segments_2BL[0, row])[1:]
        out = real(asked.targets_BL[row], asked.segments_2BL[0, row])
        assert merged(left, out, T5) == tokens[row].tolist()
        if kinds[row] == 2:  # the last quarter, in one span
            assert out[1:-1] == tokens[row, 72:].tolist()
    assert (task.counts(table, made, length) == (asked.targets_BL != IGNORED).sum(1).numpy()).all()


RECIPE = """\
modality: text
stream: {batch_size: 12, rows: {packing: best_fit, window: 40}}
views: {tokens: {ops: [Tokens: {length: 70, vocabulary: bytes_t5, end: false}]}}
targets: {t5: {view: tokens, task: t5}}
run: {workers: 0, prefetch: 0, threads: 1}
"""


def first_batches(shards, *overrides, rank=0, world_size=1):
    recipe = parse_recipe(RECIPE, path="t.yaml", overrides=overrides)
    with sslpipe.load(
        recipe, shards=shards, device="cpu", rank=rank, world_size=world_size
    ) as pipe:
        made = [pipe.make_batch(pipe.load_share(s), s) for s in range(3)]
        return pipe.source.slots_at(0), made, pipe


def test_batches_are_as_long_as_their_spec_says(texts):
    _, batches, pipe = first_batches(texts)
    spec = pipe.spec
    assert spec.views["tokens"].shape == (64,)
    assert spec.targets["t5"].shape == (14,)
    for batch in batches:
        assert batch.views["tokens"].shape == (1, 12, 64)
        assert batch.targets["t5"].shape == (1, 12, 14)
        assert batch.segments["tokens"].shape == (2, 12, 64)
        assert batch.segments["t5"].shape == (2, 12, 14)
        written = (batch.targets["t5"] != IGNORED).sum(-1)
        assert (written.numpy() == batch.hidden["t5"]).all()
        filled = (batch.segments["tokens"][0] >= 0).sum(-1)
        assert torch.equal(batch.lengths["tokens"][0], filled)


@pytest.mark.parametrize("task", ["t5", "ul2", "spans"])
def test_a_sheet_has_the_rows_of_every_task(texts, task):
    _, (batch, *_), pipe = first_batches(texts, f"targets.t5.task={task}")
    (part,) = pipe.parts
    stored = Column([], np.empty((0, 2), dtype=np.int64))  # rows have no stored picture
    picture = np.asarray(part.modality.sheet(batch, pipe.spec, part.decider, stored, rows=3))
    signs = (batch.views["tokens"][0, :3] >= T5.size - T5.sentinels).sum()
    assert (signs > 0) == (task != "spans")
    grey = (picture == (0x6B, 0x72, 0x80)).all(-1)  # the colour of what is no text
    assert grey.any() == (task != "spans")
    framed = (picture == (0xB9, 0x1C, 0x1C)).all(-1)
    assert framed.any() == (task == "spans")


def test_a_sheet_says_what_is_asked_for(texts):
    _, (batch, *_), pipe = first_batches(texts)
    (part,) = pipe.parts
    (row, written), said = strips(batch, part.decider, 0), batch.targets["t5"][0, 0]
    several = batch.segments["tokens"][0, 0].unique().numel() > 1  # full rows, without padding
    assert several
    assert row.title == f"{batch.keys[0]} and others"
    assert [cell.text for cell in row.cells if cell.text.startswith("*")][:2] == ["*0", "*1"]
    asked = said[said != IGNORED].numpy()
    assert len(written.cells) == len(asked)
    letters = [cell.text for cell in written.cells if not cell.special]
    plain = T5.decode(asked).replace("\n", "").encode("ascii", "ignore").decode()
    assert "".join(letters) == plain
    _, (batch, *_), pipe = first_batches(texts, "targets.t5.task=spans")
    (part,) = pipe.parts
    (row,) = strips(batch, part.decider, 0)
    answers = [cell.answer for cell in row.cells]
    hidden = (batch.targets["t5"][0, 0] != IGNORED).tolist()
    assert [answer is not None for answer in answers] == hidden[: len(answers)]
    assert not any(hidden[len(answers) :])


def test_a_sheet_is_as_wide_as_its_rows_and_names_others_where_there_are_some(texts):
    _, (batch, *_), pipe = first_batches(texts)
    (part,) = pipe.parts
    stored = Column([], np.empty((0, 2), dtype=np.int64))
    picture = np.asarray(part.modality.sheet(batch, pipe.spec, part.decider, stored, rows=3))
    drawn = np.flatnonzero((picture != 255).any((0, 2)))
    assert drawn[0] in range(6, 12)
    assert picture.shape[1] - 1 - drawn[-1] in range(6, 16)
    batch.segments["tokens"][0, 0] = 0  # all of one document
    assert strips(batch, part.decider, 0)[0].title == batch.keys[0]


def test_no_cell_of_a_sheet_stands_across_a_line():
    row = [Cell("word" * n, False, 0, None, 3) for n in (1, 60, 60, 999)]
    lines = in_lines(row)
    assert [cell for line in lines for cell in line] == row
    assert all(sum(cell.width for cell in line) <= ACROSS for line in lines)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_sees_the_same_rows(texts, world_size):
    _, whole, _ = first_batches(texts)
    for rank in range(world_size):
        slots, mine, _ = first_batches(texts, rank=rank, world_size=world_size)
        for batch, same in zip(whole, mine, strict=True):
            assert torch.equal(same.views["tokens"][0], batch.views["tokens"][0][slots])
            assert torch.equal(same.targets["t5"][0], batch.targets["t5"][0][slots])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("targets.t5.task={t5: {share: 1}}", "share = 1"),
        ("targets.t5.task={t5: {mean_span: 0.5}}", "mean_span = 0.5"),
        ("views.tokens.ops=[Tokens: {length: 70, end: false}]", "set vocabulary: bytes_t5"),
        ("views.tokens.ops=[Tokens: {length: 70, vocabulary: bytes_t5}]", "end: false"),
        ("views.tokens.ops=[Tokens: {length: 4096, vocabulary: bytes_t5, end: false}]", "205 span"),
        ("targets.mlm={view: tokens, task: mlm}", "no task can stand beside it"),
        ("targets.t5.task={spans: {geometric: 1}}", "geometric = 1"),
    ],
)
def test_recipes_that_do_not_suit(texts, override, message):
    with pytest.raises(RecipeError, match=message):
        first_batches(texts, override)
