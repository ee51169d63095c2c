"""Spans of whole words, against a slow loop and SpanBERT's lengths."""

import numpy as np
import pytest
import torch

from sslpipe.batch import IGNORED
from sslpipe.errors import RecipeError
from sslpipe.modalities.parts import parts_of
from sslpipe.modalities.text.marks import WORD
from sslpipe.modalities.text.masked_words import OPENS, PUT_BITS
from sslpipe.modalities.text.tasks import LaidRows
from sslpipe.modalities.text.vocabulary import Bytes
from sslpipe.modalities.text.word_spans import KIND_AT, MASK, RANDOM, MaskedWordSpans
from sslpipe.recipe import parse_recipe

from .test_tasks import pieces

PLAIN = Bytes()


def rows_of(lengths, width, seed=0, odds=0.4):
    """Rows of bytes whose words begin anywhere; documents stand between two ends."""
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(4, 260, (len(lengths), width)))
    documents = torch.full((len(lengths), width), -1)
    marks = torch.from_numpy(np.where(rng.random((len(lengths), width)) < odds, WORD, 0))
    for row, sizes in enumerate(lengths):
        for number in range(len(sizes)):
            first, last = sum(sizes[:number]), sum(sizes[: number + 1])
            documents[row, first:last] = number
            tokens[row, [first, last - 1]] = PLAIN.end
    return LaidRows(tokens, torch.stack([documents, documents * 0]), marks)


def words_in(documents, marks, text, document):
    """The places of each word of a document."""
    words = []
    for place in (p for p, d in enumerate(documents) if d == document and text[p]):
        if not words or marks[place] or place - 1 != words[-1][-1]:
            words.append([])
        words[-1].append(place)
    return words


def slow(task, table, words, first):
    """Place -> (what is done with it, the how-manieth it is): span after span, word after word."""
    spans = []
    for number, word in enumerate(words):
        touches = spans and spans[-1][-1][-1] == word[0] - 1
        if not touches or table[first + number] & OPENS:
            spans.append([])
        spans[-1].append(word)
    wanted, hidden = int(np.ceil(task.share * sum(map(len, words)))), {}
    for span in sorted(spans, key=lambda s: table[s[0][0]] >> PUT_BITS & 0xFFFFFF):
        for word in span:
            if len(hidden) + len(word) <= wanted:
                kinds = [span[0][0] if task.per == "span" else place for place in word]
                hidden |= {p: table[k] >> KIND_AT & 3 for p, k in zip(word, kinds, strict=True)}
    return hidden


@pytest.mark.parametrize("per", ["span", "token"])
def test_as_a_slow_loop_hides_them(per):
    task, length = MaskedWordSpans(per=per, words=True), 160
    lengths = [np.random.default_rng(n).integers(8, 70, 2).tolist() for n in range(25)]
    made, rows = pieces(lengths, special=True, uids=range(50)), rows_of(lengths, length)
    table = task.draw(made, "targets/spans", 0, PLAIN, length)
    asked = task.apply(rows, torch.from_numpy(table), PLAIN)
    text = rows.tokens_BL >= PLAIN.first
    total = 0
    for row, sizes in enumerate(lengths):
        expected = {}
        for document in range(2):
            lists = rows.segments_2BL[0][row].tolist(), rows.marks_BL[row].tolist()
            words = words_in(*lists, text[row].tolist(), document)
            first = sum(sizes[:document])
            found = slow(task, table[row].tolist(), words, first)
            for number, place in enumerate(sorted(found)):
                put = (int(table[row, first + number]) & (1 << PUT_BITS) - 1) - 2
                was = int(rows.tokens_BL[row, place])
                expected[place] = {MASK: PLAIN.mask, RANDOM: put}.get(found[place], was)
        hidden = asked.targets_BL[row] != IGNORED
        assert set(np.flatnonzero(hidden).tolist()) == expected.keys()
        assert torch.equal(asked.targets_BL[row][hidden], rows.tokens_BL[row][hidden])
        now = asked.rows.tokens_BL[row]
        assert [int(now[place]) for place in expected] == [*expected.values()]
        assert torch.equal(now[~hidden], rows.tokens_BL[row][~hidden])
        total += len(expected)
    assert total > 300
    assert (task.counts(table, made, length) >= (asked.targets_BL != IGNORED).sum(1).numpy()).all()


def many(task, count=300, length=256):
    made, rows = pieces([[length]] * count), rows_of([[length]] * count, length)
    rows = rows._replace(tokens_BL=torch.full((count, length), 100))
    table = task.draw(made, "s", 0, PLAIN, length)
    return rows, table, task.apply(rows, torch.from_numpy(table), PLAIN)


def test_words_are_whole_and_the_share_is_reached():
    rows, _, asked = many(MaskedWordSpans(words=True))
    hidden = asked.targets_BL != IGNORED
    word = (rows.marks_BL & WORD != 0).cumsum(1)
    for row in range(40):
        for number in range(1, int(word[row, -1]) + 1):
            mine = hidden[row][word[row] == number]
            assert mine.all() == mine.any()
    wanted = int(np.ceil(0.15 * 256))
    assert hidden.sum(1).max() == wanted
    assert hidden.sum(1).double().mean() > 0.99 * wanted


def test_lengths_count_words_and_are_spanbert_s():
    _, table, _ = many(MaskedWordSpans(words=True))
    sizes = np.concatenate([np.diff(np.flatnonzero(row & OPENS)) for row in table])
    shares = np.bincount(sizes, minlength=11)[1:11] / len(sizes)
    expected = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    # rows end within a span, so short ones are seen a little too often: a margin beside chance
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(sizes)) + 0.01
    assert sizes.max() == 10


@pytest.mark.parametrize("per", ["span", "token"])
def test_what_is_put_there_is_80_10_10(per):
    _, _, asked = many(MaskedWordSpans(words=True, per=per), count=1000)
    put = asked.rows.tokens_BL[asked.targets_BL != IGNORED]
    # a span has 9 tokens here: 3.8 words of 2.5
    margin = 4 * np.sqrt(0.16 / len(put)) * (3.5 if per == "span" else 1)
    assert (put == PLAIN.mask).double().mean().item() == pytest.approx(0.8, abs=margin)
    assert (put == 100).double().mean().item() == pytest.approx(0.1 + 0.1 / 256, abs=margin)
    assert put.min() >= PLAIN.mask
    assert put.max() < PLAIN.size


RECIPE = """
modality: text
stream: {batch_size: 2, rows: {packing: split}}
views: {tokens: {ops: [Tokens: {length: 32, end: false}]}}
targets:
  sop: {view: tokens, task: sop}
  spans: {view: tokens, task: {spans: {words: true}}}
"""


def test_they_stand_behind_pairs_where_spans_of_tokens_cannot():
    parts = parts_of(parse_recipe(RECIPE), device=torch.device("cpu"), threads=None)
    assert parts[0].decider.marked
    assert type(parts[0].decider.tasks["spans"].task) is MaskedWordSpans
    plain = parse_recipe(RECIPE.replace("{words: true}", "{words: false}"), path="t.yaml")
    with pytest.raises(RecipeError, match=r"write spans: \{words: true\}"):
        parts_of(plain, device=torch.device("cpu"), threads=None)
