"""Two texts in a row: what follows, what does not, and what is swapped."""

import shutil

import numpy as np
import pytest
import torch

from sslpipe.batch import IGNORED
from sslpipe.errors import RecipeError
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.vocabulary import Bytes
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, pack

from ... import streaming
from ...streaming import steps

LENGTH = 64
RECIPE = f"""
modality: text
stream: {{batch_size: 20, seed: 1, rows: {{packing: split, window: 40}}}}
views: {{tokens: {{ops: [Tokens: {{length: {LENGTH}, end: false}}]}}}}
targets:
  TASK: {{view: tokens, task: {{TASK: {{short: 0.1}}}}}}
  mlm: {{view: tokens, task: {{mlm: {{words: true}}}}}}
run: {{workers: 0, prefetch: 0, threads: 1}}
"""
BYTES = Bytes()


@pytest.fixture(scope="module")
def documents():
    """Key -> text whose words and sentences are numbered, so that each is found again."""
    rng, found = np.random.default_rng(0), {}
    for number in range(60):
        sentences = [
            " ".join([f"S{number}x{s}", *(f"w{s}" for _ in range(rng.integers(1, 5)))]) + "."
            for s in range(rng.integers(1, 12))
        ]
        found[f"doc{number:03d}"] = " ".join(sentences)
    return found


@pytest.fixture(scope="module")
def shards(documents, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("shards") / "text"
    for key, text in documents.items():
        (folder / f"{key}.txt").write_text(text)
    pack(folder, out, PackSettings(codec=TextCodec(), shard_samples=12))
    return out


def load(shards, task, *overrides, **ranks):
    return streaming.load(shards, *overrides, text=RECIPE.replace("TASK", task), **ranks)


def rows_of(batch, task):
    """(class, key, text A, text B, tokens as they were) of each row."""
    targets = batch.targets["mlm"][0]
    tokens = torch.where(targets != IGNORED, targets, batch.views["tokens"][0])
    documents, positions, types = batch.segments["tokens"]
    for row, label in enumerate(batch.targets[task][0].tolist()):
        here = tokens[row]
        size = int((documents[row] == 0).sum())
        assert positions[row, :size].tolist() == list(range(size))
        assert (documents[row, size:] == -1).all()
        assert (here[size:] == BYTES.pad).all()
        assert (here[0], here[size - 1]) == (BYTES.begin, BYTES.end)
        assert int(batch.lengths["tokens"][0, row]) == size
        ends = torch.nonzero(here == BYTES.end).flatten().tolist()
        first = ends[0]
        assert len(ends) <= 2
        assert types[row].tolist() == [0] * (first + 1) + [1] * (size - first - 1) + [0] * (
            LENGTH - size
        )
        texts = (BYTES.decode(here[a:b].numpy()) for a, b in ((1, first), (first + 1, size - 1)))
        yield label, batch.keys[row], *texts, here[:size]


def number_of(text):
    """Whose document a text is of; a text of words alone is told by no one."""
    return {word[1:].split("x")[0] for word in text.split() if word.startswith("S") and "x" in word}


def are_whole(*texts):
    """Whether texts begin and end as sentences do."""
    return all(text.startswith("S") and text.strip().endswith(".") for text in texts)


def test_order_is_swapped_in_half_of_the_rows_and_both_sides_touch(shards, documents):
    with load(shards, "sop") as pipe:
        batches = steps(pipe, 6 * len(pipe))
    classes = []
    for batch in batches:
        for label, key, a, b, _ in rows_of(batch, "sop"):
            classes.append(label)
            if label == IGNORED:  # one sentence: one text
                assert b == ""
                assert a in documents[key]
            else:
                one, two = (a, b) if label == 0 else (b, a)
                assert one + two in documents[key]
                assert are_whole(a, b)  # in both classes: nothing cut tells which was first
    asked = np.array([label for label in classes if label != IGNORED])
    assert len(asked) > 400
    assert asked.mean() == pytest.approx(0.5, abs=4 * 0.5 / len(asked) ** 0.5)
    assert len(asked) < len(classes)


def test_what_follows_and_what_does_not(shards, documents):
    with load(shards, "nsp") as pipe:
        batches = steps(pipe, 6 * len(pipe))
    classes, lengths, alone, cut = [], {0: [], 1: []}, 0, []
    for batch in batches:
        for label, key, a, b, row in rows_of(batch, "nsp"):
            text = documents[key]
            own = str(int(key.removeprefix("doc")))
            assert a in text
            assert b
            if label == 0:
                assert a + b in text
                assert are_whole(a, b)
            else:
                assert number_of(b.rpartition(" ")[0]) <= {
                    n for n in map(str, range(60)) if n != own
                }
                assert b.startswith("S")
                assert b[1:].split("x")[0] != own
                assert any(b in other for other in documents.values())
                cut.append(not are_whole(b))
            classes.append(label)
            if len(row) < LENGTH:
                lengths[label].append(len(row))
            alone += ". " not in text
    share = np.mean(classes)
    assert alone > 20  # documents of one sentence, which always have a partner
    assert 0.5 < share < 0.75
    assert np.mean(cut) < 0.25  # only where no sentence of the other document has room
    assert np.mean(lengths[0]) == pytest.approx(np.mean(lengths[1]), rel=0.35)


@pytest.mark.parametrize("task", ["nsp", "sop"])
def test_any_ranks_workers_batches_and_resume(shards, task):
    with load(shards, task) as pipe:
        truth, state = steps(pipe, 6), pipe.state_dict()
        behind = steps(pipe, 1)[0]
    names = "views", "targets", "segments", "lengths"
    ranks = [(rank, world) for world in (2, 5) for rank in range(world)]
    for rank, world in ranks:
        with load(shards, task, rank=rank, world_size=world) as pipe:
            slots = pipe.source.slots_at(0)
            for mine, batch in zip(steps(pipe, 2), truth, strict=False):
                for name in names:
                    for group, tensor in getattr(mine, name).items():
                        whole = getattr(batch, name)[group]
                        assert torch.equal(tensor, whole[:, slots])
    with load(shards, task, "run.workers=1") as pipe:
        pipe.load_state_dict(state)
        batch = steps(pipe, 1)[0]
    for name in names:
        for group, tensor in getattr(batch, name).items():
            assert torch.equal(tensor, getattr(behind, name)[group])

    def by_key(batches):
        found = {}
        for batch in batches:
            for row, (label, key, a, b, _) in enumerate(rows_of(batch, task)):
                found[batch.epoch, key, a, b, label] = batch.views["tokens"][0, row].tolist()
        return found

    with load(shards, task, "stream.batch_size=10", "stream.order=global") as pipe:
        other = by_key(steps(pipe, 8))
    mine = by_key(truth)
    both = mine.keys() & other.keys()
    assert len(both) > 20
    assert all(mine[key] == other[key] for key in both)


def test_another_epoch_has_other_pairs(shards):
    with load(shards, "nsp", "stream.order=sequential") as pipe:
        batches = steps(pipe, 3 * len(pipe))
    found = {}
    for batch in batches:
        for label, key, a, b, _ in rows_of(batch, "nsp"):
            found.setdefault(key, set()).add((label, a, b))
    assert np.mean([len(pairs) > 1 for pairs in found.values()]) > 0.9


def test_special_tokens_are_never_hidden_and_words_are_whole(shards):
    with load(shards, "nsp") as pipe:
        batches = steps(pipe, 4)
    for batch in batches:
        targets, tokens = batch.targets["mlm"][0], batch.views["tokens"][0]
        documents = batch.segments["tokens"][0]
        asked = targets != IGNORED
        assert (targets[asked] >= BYTES.first).all()
        text = (documents == 0) & (torch.where(asked, targets, tokens) >= BYTES.first)
        wanted = (0.15 * text.sum(1).double()).round().clamp_min(1)
        assert (asked.sum(1) <= wanted).all()
        assert asked.sum() > 0.9 * wanted.sum()
        assert (torch.from_numpy(batch.hidden["mlm"][0]) >= asked.sum(1)).all()


def test_a_document_alone_has_itself_and_documents_need_no_rows(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("One is here. Two is there.")
    pack(tmp_path / "docs", tmp_path / "s", PackSettings(codec=TextCodec()))
    words = "stream.batch_size=1", "stream.rows=null"
    with load(tmp_path / "s", "nsp", *words) as pipe:
        for batch in steps(pipe, 8):
            ((label, _, a, b, _),) = rows_of(batch, "nsp")
            assert (a + b == "One is here. Two is there.") or label == 1


def test_a_bad_document_is_padding_and_as_a_partner_it_is_not_there(shards, documents, tmp_path):
    """Its own rows are not asked for; where it would be B, what follows is."""
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    tar = sorted(folder.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    at = data.index(b"doc")
    key = data[at : at + 6].decode()
    data[at + 512] ^= 1  # the first byte of a document
    tar.write_bytes(bytes(data))
    words = "stream.order=sequential", "stream.max_bad_fraction=1"
    with load(shards, "nsp", *words) as pipe:
        good = [(batch, pipe.load_share(batch.step)) for batch in steps(pipe, 2 * len(pipe))]
    with load(folder, "nsp", *words) as pipe:
        found = steps(pipe, 2 * len(pipe))
    own = other = 0
    for (batch, share), mine in zip(good, found, strict=True):
        for row, name in enumerate(batch.keys):
            label, before = (int(b.targets["nsp"][0, row]) for b in (mine, batch))
            if name == key:
                own += 1
                assert label == IGNORED
                assert (mine.segments["tokens"][0, row] == -1).all()
                assert (mine.targets["mlm"][0, row] == IGNORED).all()
            elif share.partners[0, row] == sample_id(key) and before == 1:
                other += 1
                assert label in (0, IGNORED)
            else:
                assert label == before
                assert torch.equal(mine.views["tokens"][0, row], batch.views["tokens"][0, row])
    assert own
    assert other


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("nsp", "views.tokens.ops=[{Tokens: {length: 64}}]", "end: false in Tokens"),
        ("sop", "views.tokens.ops=[{Tokens: {length: 4, end: false}}]", "no room for two texts"),
        ("sop", "stream.rows.packing=best_fit", "packing = 'best_fit' .* write packing: split"),
        ("nsp", "targets.nsp.task={nsp: {short: 2}}", "short = 2.0; it lies between 0 and 1"),
        ("sop", "targets.mlm.task=spans", r"targets.mlm: spans are .* write spans: \{words: true"),
        ("sop", "targets.mlm.task=nsp", "targets.mlm parts the rows that sop"),
    ],
)
def test_mistakes_are_told(shards, task, override, message):
    with pytest.raises(RecipeError, match=rf"^(test\.yaml|--set ).*{message}"):
        load(shards, task, override)


def test_nsp_wants_shards(shards):
    with pytest.raises(RecipeError, match="other samples are wanted beside each"):
        load([{"__key__": "a", "txt": b"a"}], "nsp", "stream.rows=null", "stream.epoch_samples=20")
