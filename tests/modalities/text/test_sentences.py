"""Rows of whole sentences: planned from files beside the tars, the same on any ranks."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.batch import IGNORED
from sslpipe.errors import RecipeError, ShardError
from sslpipe.modalities.text.marks import SENTENCE, with_ends
from sslpipe.modalities.text.sentence_file import (
    SentenceFile,
    sentence_lengths,
    sentence_path,
    write_sentences,
)
from sslpipe.modalities.text.stored_tokens import stored_faults
from sslpipe.modalities.text.token_file import TokenFileOf, token_path
from sslpipe.modalities.text.trained import open_vocabulary
from sslpipe.recipe import parse_recipe
from sslpipe.shards import read_index, read_manifest

from ... import streaming
from ...streaming import steps
from .counted import count, pack_with_bpe, random_words, write_bpe

LENGTH = 48
RECIPE = """
modality: text
stream: {{batch_size: 24, rows: {{packing: {packing}, window: 30}}}}
views:
  tokens: {{ops: [Tokens: {{length: 48, vocabulary: {vocabulary}, begin: true, end: true}}]}}
targets: {{mlm: {{view: tokens, task: mlm}}}}
run: {{workers: 0, prefetch: 0, threads: 1}}
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Documents of sentences in a few shards, with a BPE of theirs, counted with sentences."""
    rng = np.random.default_rng(1)
    words = random_words(rng)

    def document():
        sizes = np.minimum(1 + rng.lognormal(2, 0.8, rng.integers(1, 9)).astype(int), 60)
        return " ".join(" ".join(rng.choice(words, size)).capitalize() + "." for size in sizes)

    out = pack_with_bpe((document() for _ in range(70)), tmp_path_factory)
    count(out, sentences=True)
    return out


@pytest.fixture
def texts(packed, tmp_path):
    """A set that may be changed."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


def load(folder, packing="sentences", *, rank=0, world_size=1, override=(), file="tokenizer.json"):
    text = RECIPE.format(vocabulary=json.dumps(str(folder / file)), packing=packing)
    return streaming.load(folder, *override, text=text, rank=rank, world_size=world_size)


def pieces(batch):
    """The ids, as they were, of each piece of each row."""
    tokens, targets = batch.views["tokens"][0], batch.targets["mlm"][0]
    ids = torch.where(targets == IGNORED, tokens, targets)
    documents = batch.segments["tokens"][0]
    for row in range(len(ids)):
        yield [
            ids[row][documents[row] == number].tolist()
            for number in range(int(documents[row].max()) + 1)
        ]


@pytest.fixture(scope="module")
def marked(packed):
    """The ids of each document, with </s>, and the places where its sentences begin."""
    vocabulary = open_vocabulary(str(packed / "tokenizer.json"), "t")
    found = []
    for text in read_texts(packed):
        ids = vocabulary.encode_marked(text)
        begins = np.flatnonzero(with_ends(ids) & SENTENCE)
        plain = [vocabulary.begin, *vocabulary.encode(text).tolist(), vocabulary.end]
        found.append((plain, {0, *(begins[1:] + 1).tolist(), len(plain)}))
    return found


def read_texts(folder):
    """The documents, out of their tars."""
    import tarfile

    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                yield tar.extractfile(member).read().decode()


@pytest.mark.parametrize("packing", ["sentences", "doc_sentences"])
def test_an_epoch_has_every_token_once_and_cuts_at_sentences_alone(packed, marked, packing):
    with load(packed, packing, override=["stream.batch_size=1"]) as pipe:
        rows = [row for batch in steps(pipe, len(pipe)) for row in pieces(batch)]
    assert sum(len(piece) for row in rows for piece in row) == sum(len(ids) for ids, _ in marked)
    found = [piece for row in rows for piece in row]
    cut = 0
    for ids, borders in marked:
        ends = sorted(borders)
        for begin, size in zip(ends, np.diff(ends), strict=False):
            cut += size > LENGTH
            if size <= LENGTH:  # whole in one of the rows
                assert any(holds(piece, ids[begin : begin + size]) for piece in found)
    assert cut > 2
    several = sum(len(row) > 1 for row in rows)
    assert several == 0 if packing == "doc_sentences" else several > 20


def holds(piece, sentence):
    """Whether a run of a piece is that sentence."""
    size = len(sentence)
    return any(list(piece[at : at + size]) == sentence for at in range(len(piece) - size + 1))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_ranks_sees_the_same_rows_from_any_step(packed, world_size):
    with load(packed) as pipe:
        whole = steps(pipe, 5)
        state = pipe.state_dict()
    for step in (0, 3):
        for rank in range(world_size):
            with load(packed, rank=rank, world_size=world_size) as pipe:
                pipe.load_state_dict({**state, "step": step})
                mine, slots = next(iter(pipe)), pipe.source.slots_at(step)
            assert torch.equal(mine.views["tokens"][0], whole[step].views["tokens"][0][slots])
            assert torch.equal(mine.targets["mlm"][0], whole[step].targets["mlm"][0][slots])


def test_documents_that_are_held_out_stand_in_no_row(packed):
    def tokens(part):
        override = [f"stream.holdout={{fraction: 0.3, part: {part}}}", "stream.batch_size=1"]
        with load(packed, override=override) as pipe:
            return [piece for b in steps(pipe, len(pipe)) for row in pieces(b) for piece in row]

    train, apart = tokens("train"), tokens("held_out")
    with load(packed, override=["stream.batch_size=1"]) as pipe:
        both = [piece for b in steps(pipe, len(pipe)) for row in pieces(b) for piece in row]
    assert sum(map(len, train)) + sum(map(len, apart)) == sum(map(len, both))
    assert min(len(train), len(apart)) > 10


def test_sentence_lengths_are_those_between_marks():
    ids = np.array([5, 6 | SENTENCE, 7, 8 | SENTENCE], dtype=np.int32)
    assert sentence_lengths(ids).tolist() == [1, 2, 1]  # what stands before the first is one
    assert sentence_lengths(ids[1:]).tolist() == [2, 1]
    assert sentence_lengths(ids[:0]).tolist() == []


def test_sentences_are_counted_beside_ids_and_stay(texts):
    manifest = read_manifest(texts)
    assert set(manifest.counted) == {"tokens", "sentences"}
    count(texts, ids=True)
    manifest = read_manifest(texts)
    assert set(manifest.counted) == {"tokens", "sentences", "tok"}
    for shard in manifest.shards:
        of = TokenFileOf(manifest.counted["sentences"], shard.sha256)
        found = SentenceFile(sentence_path(texts / shard.file), of)
        index = read_index(texts / shard.file)
        kept = found.of(np.arange(len(index)))
        sums = np.add.reduceat(kept.lengths, np.cumsum(kept.counts) - kept.counts)
        assert (sums == index.samples["extent"][:, 1]).all()
        assert token_path(texts / shard.file).exists()
    with load(texts) as kept, load(texts) as pipe:
        assert torch.equal(next(iter(kept)).views["tokens"], next(iter(pipe)).views["tokens"])


def test_another_vocabulary_s_count_removes_them(texts):
    write_bpe(texts, "other.json", 290)
    count(texts, "other.json")
    assert set(read_manifest(texts).counted) == {"tokens"}
    assert not list(texts.glob("*.sent"))


def test_sentences_that_nobody_counted_are_told_with_the_command(texts, packed):
    write_bpe(texts, "other.json", 290)
    with pytest.raises(RecipeError, match=r"sentences of .* --sentences`"):
        load(texts, file="other.json")
    text = RECIPE.format(vocabulary="bytes", packing="sentences")
    with pytest.raises(RecipeError, match=r"packing = 'sentences' needs .*--kind bytes"):
        sslpipe.load(parse_recipe(text), shards=texts, device="cpu")


def test_damage_is_told_and_found_by_verify(texts):
    manifest = read_manifest(texts)
    assert not [p for shard in manifest.shards for p in stored_faults(manifest, shard)]
    path = sorted(texts.glob("*.sent"))[1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    faults = [p for shard in manifest.shards for p in stored_faults(manifest, shard)]
    assert [f.shard for f in faults] == [path.name.removesuffix(".sent")]
    with pytest.raises(ShardError, match=r"was cut or changed; run .*--sentences --rebuild"):
        load(texts)
    path.write_bytes(data[:40])
    with pytest.raises(ShardError, match="is no file of sentences"):
        load(texts)
    path.unlink()
    with pytest.raises(ShardError, match=re.escape(f"{path}: cannot be read")):
        load(texts)


def test_sentences_of_other_documents_are_told(texts):
    """Naive error: rows are planned from a file that was made of another tokenizer's ids."""
    manifest = read_manifest(texts)
    shard = manifest.shards[0]
    of = TokenFileOf(manifest.counted["sentences"], shard.sha256)
    wrong = [np.array([3, 4])] * shard.samples
    write_sentences(sentence_path(texts / shard.file), of, wrong)
    with pytest.raises(ShardError, match=r"tokens in the index, and sentences of 9; run"):
        load(texts)
