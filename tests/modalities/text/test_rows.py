"""Rows of text: every byte of every document, the same on any ranks; pieces keep their masks."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.batch import IGNORED
from sslpipe.errors import RecipeError, SampleError, StateError
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.vocabulary import Bytes, document_of
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack, read_index

from ... import streaming
from ...streaming import steps

LENGTH = 64
RECIPE = f"""
modality: text
stream: {{batch_size: 24, rows: {{packing: best_fit, window: 40}}}}
views: {{tokens: {{ops: [Tokens: {{length: {LENGTH}, begin: true}}]}}}}
targets: {{mlm: {{view: tokens, task: mlm}}}}
run: {{workers: 0, prefetch: 0, threads: 1}}
"""
load = partial(streaming.load, text=RECIPE)
BYTES = Bytes()


@pytest.fixture(scope="module")
def documents():
    """Key -> text, log-normal in length: some longer than a row."""
    rng = np.random.default_rng(0)
    letters = list("abcdefgh ij\nklé–")
    sizes = np.minimum(1 + rng.lognormal(3, 1, 120).astype(int), 400)
    return {f"doc{i:03d}": "".join(rng.choice(letters, size)) for i, size in enumerate(sizes)}


@pytest.fixture(scope="module")
def shards(documents, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("shards") / "text"
    for key, text in documents.items():
        (folder / f"{key}.txt").write_bytes(text.encode())
    pack(folder, out, PackSettings(codec=TextCodec(), shard_bytes=40_000))
    return out


def pieces(batch):
    """(text of the piece, ids as they stand, targets) of all documents of a batch's rows."""
    tokens_BL, targets_BL = batch.views["tokens"][0], batch.targets["mlm"][0]
    documents_BL, positions_BL = batch.segments["tokens"]
    for tokens, targets, documents, positions in zip(
        tokens_BL, targets_BL, documents_BL, positions_BL, strict=True
    ):
        for number in range(int(documents.max()) + 1):
            here = documents == number
            assert positions[here].tolist() == list(range(int(here.sum())))
            ids = torch.where(targets[here] == IGNORED, tokens[here], targets[here])
            yield ids.numpy(), tokens[here].numpy(), targets[here].numpy()


def raw(ids):
    """The bytes of ids without those around a document."""
    return bytes((ids[ids >= BYTES.first] - BYTES.first).astype(np.uint8))


@pytest.mark.parametrize("packing", ["best_fit", "concat", "split"])
def test_an_epoch_has_every_byte_of_every_document(shards, documents, packing):
    with load(shards, f"stream.rows.packing={packing}", "stream.batch_size=1") as pipe:
        batches = steps(pipe, len(pipe))
    found = sorted(raw(ids) for batch in batches for ids, _, _ in pieces(batch))
    assert sum(map(len, found)) == sum(len(text.encode()) for text in documents.values())
    whole = {text.encode() for text in documents.values()}
    if packing != "concat":  # documents that fit are whole
        fits = {text for text in whole if len(text) <= LENGTH - 2}
        assert fits <= set(found)
    filled = sum(int(batch.lengths["tokens"].sum()) for batch in batches)
    if packing != "split":
        assert filled / (LENGTH * len(batches)) > 0.95


def test_rows_of_steps_in_one_go_are_those_of_each_and_end_with_the_epoch(shards):
    with load(shards) as pipe:
        source, epoch = pipe.source, len(pipe)
        found = source.planned(range(epoch - 2, epoch + 2))
        assert len(found) == 2  # windows of the next epoch are packed when they are needed
        for step, wants in enumerate(found, epoch - 2):
            (alone,) = source.planned([step])
            for name in wants.__slots__:
                assert np.array_equal(getattr(wants, name), getattr(alone, name)), name


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_ranks_sees_the_same_rows(shards, world_size):
    with load(shards) as pipe:
        whole = steps(pipe, 3)
    ranks = []
    for rank in range(world_size):
        with load(shards, rank=rank, world_size=world_size) as pipe:
            ranks.append((pipe.source.slots_at(0), steps(pipe, 3)))
    for step, batch in enumerate(whole):
        for slots, mine in ranks:
            same = mine[step]
            assert torch.equal(same.views["tokens"][0], batch.views["tokens"][0][slots])
            assert torch.equal(same.targets["mlm"][0], batch.targets["mlm"][0][slots])
            assert same.keys == tuple(batch.keys[slot] for slot in slots)


def test_a_resume_anywhere_on_other_ranks_and_workers(shards):
    with load(shards) as pipe:
        truth = steps(pipe, 12)
        state = pipe.state_dict()
    for step in (0, 1, 7, 11):
        with load(shards, "run.workers=2") as pipe:
            pipe.load_state_dict({**state, "step": step})
            batch = next(iter(pipe))
        for name in ("views", "targets", "segments", "lengths"):
            for group, tensor in getattr(batch, name).items():
                assert torch.equal(tensor, getattr(truth[step], name)[group])
        assert (batch.step, batch.epoch, batch.keys) == (step, truth[step].epoch, truth[step].keys)


def test_a_state_of_a_late_step_packs_no_window_before_it(shards, monkeypatch):
    with load(shards) as pipe:
        steps(pipe, 5 * len(pipe))
        truth, state = next(iter(pipe)), None
        pipe.load_state_dict({**pipe.state_dict(), "step": truth.step})
        state = pipe.state_dict()
    assert state["anchor"][0] >= 4 * 3  # of 40 of 120 documents each
    json.dumps(state)
    asked = []
    with load(shards) as pipe:
        window = pipe.source.rows.window
        monkeypatch.setattr(pipe.source.rows, "window", lambda n: asked.append(n) or window(n))
        pipe.load_state_dict(state)
        asked.clear()
        batch = next(iter(pipe))
    assert torch.equal(batch.views["tokens"], truth.views["tokens"])
    assert min(asked) >= state["anchor"][0]


@pytest.mark.parametrize("anchor", [None, [1], [-1, 0], ["a", 0], [1.0, 2]])
def test_an_anchor_that_is_none_is_refused(shards, anchor):
    with load(shards) as pipe, pytest.raises(StateError, match="its anchor is"):
        pipe.load_state_dict({**pipe.state_dict(), "anchor": anchor})


def test_masks_are_exact_and_never_of_special_tokens(shards):
    with load(shards) as pipe:
        batches = steps(pipe, 6)
    masked = kept = random = 0
    for batch in batches:
        for ids, tokens, targets in pieces(batch):
            asked = targets != IGNORED
            text = ids >= BYTES.first
            assert asked.sum() == min(text.sum(), max(1, np.rint(0.15 * text.sum())))
            assert text[asked].all()
            masked += (tokens[asked] == BYTES.mask).sum()
            kept += (tokens[asked] == targets[asked]).sum()
            random += ((tokens[asked] != BYTES.mask) & (tokens[asked] != targets[asked])).sum()
            assert (tokens[asked] >= BYTES.mask).all()
    total = masked + kept + random
    deviation = 4 * np.sqrt(0.8 * 0.2 / total)
    assert masked / total == pytest.approx(0.8, abs=deviation)
    # a random byte may be the one that stood there: 1 of 256
    assert random / total == pytest.approx(0.1 * 255 / 256, abs=deviation)


def test_a_piece_keeps_its_mask_in_any_row_and_gets_another_in_another_epoch(shards, documents):
    short = {t.encode() for t in documents.values() if 8 <= len(t.encode()) <= LENGTH - 2}

    def masks(packing, batches):
        with load(shards, f"stream.rows.packing={packing}") as pipe:
            found = {}
            for batch in steps(pipe, batches):
                if batch.epoch == 0:
                    for ids, _, targets in pieces(batch):
                        found.setdefault(raw(ids), tuple((targets != IGNORED).tolist()))
            later = {}
            for batch in steps(pipe, batches):
                for ids, _, targets in pieces(batch):
                    later.setdefault(raw(ids), tuple((targets != IGNORED).tolist()))
            return found, later

    (one, later), (other, _) = masks("best_fit", 4), masks("one", 5)
    both = short & one.keys() & other.keys()
    assert len(both) > 30
    assert all(one[text] == other[text] for text in both)
    again = short & one.keys() & later.keys()
    assert sum(one[text] != later[text] for text in again) > len(again) / 2


def test_a_batch_of_bad_documents_alone_is_padding(shards, tmp_path):
    for file in Path(shards).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for tar in tmp_path.glob("*.tar"):
        data = bytearray(tar.read_bytes())
        for start in read_index(tar).payloads["offset"].tolist():
            data[start] ^= 1
        tar.write_bytes(data)
    with load(tmp_path) as pipe:  # which would stop the run
        batch = pipe.make_batch(pipe.load_share(0), 0)
    assert not batch.valid.any()
    assert (batch.views["tokens"] == BYTES.pad).all()
    assert (batch.segments["tokens"][0] == -1).all()
    assert (batch.segments["tokens"][1] == 0).all()
    assert (batch.targets["mlm"] == IGNORED).all()
    assert (batch.lengths["tokens"] == 0).all()


def test_a_bad_document_leaves_its_place_empty_and_is_told(shards, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in Path(shards).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with load(shards) as pipe:
        good = next(iter(pipe))
    tar = sorted(folder.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    at = data.index(b"doc")
    data[at + 512] ^= 1  # the first byte of a document
    tar.write_bytes(bytes(data))
    with load(folder, "stream.max_bad_fraction=1") as pipe:
        batches = steps(pipe, len(pipe))
        assert pipe.replaced >= 1
        assert pipe.loading is not None
    holes = [(b.segments["tokens"][0] < 0).sum() for b in batches]
    assert len(holes) == len(batches)
    first = batches[0]
    same = (first.views["tokens"] == good.views["tokens"]) | (first.segments["tokens"][0] < 0)
    assert same.all()  # nothing else has moved
    with load(folder, "stream.on_bad=raise") as pipe, pytest.raises(SampleError, match="CRC32"):
        steps(pipe, len(pipe))


def test_rules_for_bytes(tmp_path):
    assert document_of(b"\xef\xbb\xbfa\r\nb\rc\0") == "a\nb\nc\0"
    assert document_of(json.dumps({"text": "a\r\nb", "x": 1}).encode()) == "a\nb"
    assert document_of(b"{not json") == "{not json"
    with pytest.raises(SampleError, match="byte 3 is not UTF-8"):
        document_of(b"abc\xff")
    with pytest.raises(SampleError, match="no 'text'"):
        document_of(b'{"body": "a"}')
    codec = TextCodec()
    assert codec.extent("é\r\n".encode()) == (3, 0)
    assert codec.extension(b'{"text": "a"}') == "json"
    with pytest.raises(SampleError, match="empty"):
        codec.extent(b"\xef\xbb\xbf")


def test_an_object_is_read_as_the_text_that_it_is():
    """Of bytes, `json` would guess UTF-16, and find an object that is none in UTF-8."""
    for encoding in ("utf-16-le", "utf-32-le"):
        data = '{"text": "a"}'.encode(encoding)
        assert document_of(data) == data.decode()
        assert TextCodec().extension(data) == "txt"
    assert document_of(b'\xef\xbb\xbf\r\n {"text": "a"}') == "a"


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_an_object_that_cannot_be_read_is_no_document(value):
    with pytest.raises(SampleError, match="begins as a JSON object that cannot be read"):
        TextCodec().extent(f'{{"text": "a", "v": {value}}}'.encode())


def test_bytes_go_back_to_text():
    text = "naïve – ok\n"
    ids = BYTES.encode(text)
    assert ids.min() >= BYTES.first
    assert BYTES.decode(np.r_[BYTES.begin, ids, BYTES.end, BYTES.pad]) == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.remainder=pad", "rows of one epoch are followed"),
        ("stream.on_bad=exclude", "rows of one epoch are followed"),
        ("views.tokens.count=2", "one view and one op"),
        ("views.tokens.ops=[Tokens: {length: 1}]", "length = 1"),
        ("views.tokens.ops=[Tokens: {length: 64, vocabulary: bpe}]", "vocabulary"),
        ("targets.mlm.task={mlm: {share: 2}}", "share = 2"),
        ("targets.mlm.task=mlmm", "did you mean 'mlm'"),
    ],
)
def test_recipes_that_do_not_suit(shards, override, message):
    with pytest.raises(RecipeError, match=message):
        load(shards, override)


def test_rows_are_of_one_set_and_of_text(shards, packed):
    with pytest.raises(RecipeError, match="packed from one set"):
        load({"a": shards, "b": shards})
    recipe = parse_recipe(
        "stream: {batch_size: 8, rows: {}}\nviews: {global: {ops: [CenterCrop: {size: [32, 32]}]}}",
        path="t.yaml",
    )
    with pytest.raises(RecipeError, match="does not have"):
        sslpipe.load(recipe, shards=packed, device="cpu")
