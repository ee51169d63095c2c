"""Words are hidden whole, in the order that their keys give, as a slow loop hides them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sslpipe.batch import IGNORED
from sslpipe.modalities.text.marks import (
    LAST,
    MARKS,
    SENTENCE,
    WORD,
    byte_marks,
    sign_marks,
    with_ends,
)
from sslpipe.modalities.text.masked_words import OPENS, PUT_BITS, MaskedWords
from sslpipe.modalities.text.tasks import KEEP, NOTHING, LaidRows
from sslpipe.modalities.text.trained import TrainedVocabulary
from sslpipe.modalities.text.vocabulary import SPECIALS, Bytes

from .test_tasks import pieces

PLAIN = Bytes()
TEXT = (
    "The unbelievable dog's 3 puppies ran; it was (really) extraordinary! 'Who?' she said.\n"
    "Élan naïveté – re-establish the internationalisation of telecommunications, please. "
    "日本語 is e\u0301crit here... \tNo misunderstandings:\n\n  antidisestablishmentarianism."
)
WORDS = """\
The unbelievable dog ' s 3 puppies ran ; it was ( really ) extraordinary ! ' Who ? ' she said .
Élan naïveté – re - establish the internationalisation of telecommunications , please .
日 本 語 is e\u0301crit here . . . No misunderstandings : antidisestablishmentarianism .
""".split()  # noqa: SIM905  the list of so many words is unreadable
SENTENCES = ["The", "'Wh", "Éla", "日本語", "No ", "ant"]  # not she, which is no large letter


def trained(kind):
    """A vocabulary of pieces of TEXT."""
    made = {
        "bpe": lambda: Tokenizer(models.BPE()),
        "wordpiece": lambda: Tokenizer(models.WordPiece(unk_token="<unk>")),
        "unigram": lambda: Tokenizer(models.Unigram()),
    }[kind]()
    specials = [*SPECIALS, "<unk>"]
    if kind == "bpe":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=specials, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    elif kind == "wordpiece":
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=specials, show_progress=False
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
        )
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=110, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator([TEXT] * 20, trainer)
    return TrainedVocabulary("t.json", made.to_str().encode())


def words_in(vocabulary, ids):
    """Texts of runs of tokens from one mark to the next, without spaces; empty ones go."""
    begins = [*np.flatnonzero(ids & WORD), len(ids)]
    assert begins[0] == 0
    plain = ids & ~MARKS
    found = [vocabulary.decode(plain[a:b]) for a, b in pairwise(begins)]
    return ["".join(text.split()) for text in found if text.strip()]


def test_words_of_signs():
    marks = sign_marks(TEXT)
    begins = [*np.flatnonzero(marks & WORD), len(TEXT)]
    found = [TEXT[a:b] for a, b in pairwise(begins)]
    assert [word for word in found if word.strip()] == WORDS
    assert [TEXT[at : at + 3] for at in np.flatnonzero(marks & SENTENCE)] == SENTENCES
    assert (byte_marks("") | sign_marks("")).shape == (0,)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "wordpiece", "unigram"])
def test_words_are_the_same_in_every_vocabulary(kind):
    """Naive error: tokens that touch are one word, so byte-level BPE has one word a sentence."""
    vocabulary = PLAIN if kind == "bytes" else trained(kind)
    ids = vocabulary.encode_marked(TEXT)
    assert (ids & ~MARKS).tolist() == vocabulary.encode(TEXT).tolist()
    assert ((ids & WORD) != 0).sum() < len(ids)  # some words have several tokens
    found = words_in(vocabulary, ids)
    plain = [word.lower() for word in WORDS] if kind == "wordpiece" else WORDS
    if kind == "wordpiece":  # which strips accents, and knows no sign that it was not taught
        assert len(found) == len(plain)
        same = [a == b for a, b in zip(found, plain, strict=True)]
        assert sum(same) >= len(same) - 4
    elif kind == "bpe":  # some of whose tokens are two words, as 's is
        assert "".join(found) == "".join(plain)
        assert "'s" in found
        assert [w for w in found if w.isalpha()] == [w for w in plain if w.isalpha() and w != "s"]
    else:
        assert found == plain
    starts = np.flatnonzero(ids & SENTENCE)
    assert len(starts) == len(SENTENCES)


def test_a_sentence_ends_before_the_next_and_with_its_document():
    ids = PLAIN.encode_marked(TEXT)
    ends = np.flatnonzero(with_ends(ids) & LAST)
    assert ends.tolist() == [*(np.flatnonzero(ids & SENTENCE)[1:] - 1), len(ids) - 1]
    assert (with_ends(ids) & ~LAST).tolist() == ids.tolist()
    assert len(with_ends(ids[:0])) == 0


def test_an_empty_text_and_one_of_spaces():
    for vocabulary in (PLAIN, trained("bpe")):
        assert len(vocabulary.encode_marked("")) == 0
        assert (vocabulary.encode_marked("  \n ") & WORD).any()


def slow(task, table, marks, documents, special):
    """create_masked_lm_predictions, document by document: which places are hidden."""
    hidden = set()
    for document in {*documents} - {-1}:
        places = [p for p, d in enumerate(documents) if d == document and not special[p]]
        if not places:
            continue
        first = documents.index(document)
        words = []
        for place in places:
            if not words or marks[place] or place - 1 != words[-1][-1]:
                words.append([])
            words[-1].append(place)
        groups = []
        for number, word in enumerate(words):
            touches = groups and groups[-1][-1] == word[0] - 1
            if touches and not int(table[first + number]) & OPENS:
                groups[-1] += word
            else:
                groups.append([*word])
        wanted = max(1, round(task.share * len(places)))
        taken = 0
        for group in sorted(groups, key=lambda g: (int(table[g[0]]) >> PUT_BITS) & 0xFFFFFF):
            if taken + len(group) <= wanted:
                taken += len(group)
                hidden |= {*group}
    return hidden


@pytest.mark.parametrize("settings", [{}, {"words": True}, {"words": True, "most": 3}])
def test_as_a_slow_loop_hides_them(settings):
    task, rng = MaskedWords(share=0.2, **settings), np.random.default_rng(0)
    length, count = 96, 40
    laid = [[*rng.integers(3, 40, 2), 8] for _ in range(count)]
    made = pieces(laid, special=True, uids=range(3 * count))
    table = task.draw(made, "targets/mlm", 0, PLAIN, length)
    tokens = torch.from_numpy(rng.integers(4, 260, (count, length)))
    documents = torch.full((count, length), -1)
    marks = torch.from_numpy(np.where(rng.random((count, length)) < 0.3, WORD, 0))
    special = np.zeros((count, length), dtype=bool)
    for row, sizes in enumerate(laid):
        at = 0
        for number, size in enumerate(sizes):
            documents[row, at : at + size] = number
            for end in (at, at + size - 1):
                tokens[row, end], special[row, end] = PLAIN.end, True
            at += size
    rows = LaidRows(tokens, torch.stack([documents, documents * 0]), marks)
    asked = task.apply(rows, torch.from_numpy(table), PLAIN)
    begins = marks != 0 if settings else torch.ones_like(marks)
    total = 0
    for row in range(count):
        found = set(np.flatnonzero(asked.targets_BL[row] != IGNORED).tolist())
        lists = begins[row].tolist(), documents[row].tolist(), special[row].tolist()
        assert found == slow(task, table[row].tolist(), *lists)
        total += len(found)
        here = asked.targets_BL[row] != IGNORED
        assert (asked.targets_BL[row][here] == tokens[row][here]).all()
        assert (asked.rows.tokens_BL[row][~here] == tokens[row][~here]).all()
    assert total > count * 5
    assert (task.counts(table, made, length) >= (asked.targets_BL != IGNORED).sum(1).numpy()).all()


def test_words_are_whole_and_tokens_are_80_10_10():
    """80/10/10 is of tokens: a hidden word may have a mask and a random token in it."""
    task, text = MaskedWords(words=True), PLAIN.encode_marked(TEXT)
    length = len(text)
    count = 400
    made = pieces([[length]] * count)
    table = task.draw(made, "s", 0, PLAIN, length)
    tokens = torch.from_numpy((text & ~MARKS).astype(np.int64)).expand(count, -1)
    marks = torch.from_numpy((text & MARKS).astype(np.int64)).expand(count, -1)
    zeros = torch.zeros_like(tokens)
    asked = task.apply(
        LaidRows(tokens, torch.stack([zeros, zeros]), marks), torch.from_numpy(table), PLAIN
    )
    hidden = asked.targets_BL != IGNORED
    word = ((text & WORD) != 0).cumsum()
    for number in range(1, word[-1] + 1):
        mine = hidden[:, word == number]
        assert (mine.all(1) == mine.any(1)).all()
    wanted = round(0.15 * length)
    assert hidden.sum(1).max() <= wanted
    assert hidden.sum(1).double().mean() > 0.99 * wanted
    put = asked.rows.tokens_BL[hidden]
    was = tokens[hidden]
    margin = 4 * np.sqrt(0.16 / len(put))
    assert (put == PLAIN.mask).double().mean().item() == pytest.approx(0.8, abs=margin)
    assert (put == was).double().mean().item() == pytest.approx(0.1 + 0.1 / 256, abs=margin)
    assert put.min() >= PLAIN.mask
    assert put.max() < PLAIN.size


def test_groups_of_words_have_odds_of_one_by_n():
    task = MaskedWords(words=True, most=3)
    table = task.draw(pieces([[128]] * 300), "s", 0, PLAIN, 128)
    sizes = np.concatenate([np.diff(np.flatnonzero(row & OPENS)) for row in table])
    shares = np.bincount(sizes, minlength=4)[1:] / len(sizes)
    assert np.abs(shares - np.array([6, 3, 2]) / 11).max() < 4 * np.sqrt(0.25 / len(sizes))


def test_a_piece_keeps_its_words_in_any_row_and_has_others_in_another_epoch():
    task, text = MaskedWords(words=True, most=2), PLAIN.encode_marked(TEXT[:60])
    size = len(text)

    def hidden(lengths, uids, at, epoch=0):
        made = pieces(lengths, uids=uids, epoch=epoch)
        table = torch.from_numpy(task.draw(made, "s", 0, PLAIN, 160))
        tokens = torch.full((len(lengths), 160), 50)
        documents = torch.full((len(lengths), 160), -1)
        for row, sizes in enumerate(lengths):
            for number in range(len(sizes)):
                documents[row, sum(sizes[:number]) : sum(sizes[: number + 1])] = number
        marks = torch.full((len(lengths), 160), WORD)
        row, column = at
        tokens[row, column : column + size] = torch.from_numpy((text & ~MARKS).astype(np.int64))
        marks[row, column : column + size] = torch.from_numpy((text & MARKS).astype(np.int64))
        rows = LaidRows(tokens, torch.stack([documents, documents * 0]), marks)
        return task.apply(rows, table, PLAIN).targets_BL[row, column : column + size] != IGNORED

    alone = hidden([[size]], [7], (0, 0))
    assert torch.equal(alone, hidden([[30], [40, size, 20]], [1, 2, 7, 4], (1, 40)))
    later = [hidden([[size]], [7], (0, 0), epoch=epoch) for epoch in range(1, 4)]
    assert any(not torch.equal(alone, other) for other in later)


def test_what_is_no_step_is_nothing_and_what_is_put_has_a_value():
    table = MaskedWords().draw(pieces([[5]], special=True), "s", 0, PLAIN, 8)
    assert (table[0, 5:] == NOTHING).all()
    put = (table[0, :1] & (1 << PUT_BITS) - 1) + KEEP
    assert (put >= KEEP).all()
    assert (put < PLAIN.size).all()


def test_a_group_of_words_needs_words():
    with pytest.raises(ValueError, match=r"most = 3 .* words: true"):
        MaskedWords(most=3)
