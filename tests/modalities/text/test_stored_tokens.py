"""Ids beside the tars: the same rows, no text is read; damage and other vocabularies are told."""

import errno
import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.device.buffers import Buffers
from sslpipe.errors import SampleError, ShardError
from sslpipe.modalities import crews
from sslpipe.modalities.text import counting, stored_tokens, token_pieces
from sslpipe.modalities.text.stored_tokens import StoredTokens, stored_faults
from sslpipe.modalities.text.token_file import (
    CHUNK,
    DOCUMENT,
    HEADER,
    UNREAD,
    TokenFileOf,
    file_bytes,
    open_tokens,
    token_path,
    token_writer,
)
from sslpipe.modalities.text.token_pieces import DocumentTable, TokenFiles
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.recipe import parse_recipe
from sslpipe.shards import read_index, read_manifest

from .counted import count, pack_with_bpe, random_words, write_bpe

RECIPE = """
modality: text
stream: {{batch_size: 5, rows: {{packing: {packing}, window: 30}}}}
views: {{tokens: {{ops: [Tokens: {{length: 32, vocabulary: {vocabulary}, begin: true}}]}}}}
targets: {{mlm: {{view: tokens, task: mlm}}}}
run: {{workers: {workers}, prefetch: 0, threads: 1}}
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """DocumentTable of up to 300 words in a few shards, with a BPE of theirs, counted with ids."""
    rng = np.random.default_rng(1)
    words = random_words(rng)
    sizes = np.minimum(1 + rng.lognormal(2, 1.2, 70).astype(int), 300)
    out = pack_with_bpe((" ".join(rng.choice(words, size)) for size in sizes), tmp_path_factory)
    count(out, ids=True)
    return out


@pytest.fixture
def texts(packed, tmp_path):
    """A set that may be changed."""
    return Path(shutil.copytree(packed, tmp_path / "set"))


def batches(folder, number=8, packing="best_fit", workers=0, override=()):
    text = RECIPE.format(
        vocabulary=json.dumps(str(folder / "tokenizer.json")), packing=packing, workers=workers
    )
    recipe = parse_recipe(text, path="t.yaml", overrides=override)
    found = []
    with sslpipe.load(recipe, shards=folder, device="cpu", rank=0, world_size=1) as pipe:
        while len(found) < number:
            found += list(pipe)
    return found[:number]


def without_ids(folder):
    """The same set, as it is counted without ids."""
    file = folder / "manifest.json"
    document = json.loads(file.read_text())
    del document["counted"]["tok"]
    file.write_text(json.dumps(document))
    for tokens in folder.glob("*.tok"):
        tokens.unlink()


def spoil_payloads(folder):
    """Change a byte of every document: whoever reads one sees that."""
    for shard in read_manifest(folder).shards:
        tar = folder / shard.file
        data, index = bytearray(tar.read_bytes()), read_index(tar)
        for row in range(len(index)):
            data[int(index.payload(row).offset)] ^= 1
        tar.write_bytes(bytes(data))


def as_version_1(path):
    """A token file as version 1 had it: without keys, its CRC-32s of ids alone."""
    data = path.read_bytes()
    magic, _, width, documents, _, *digests, _ = HEADER.unpack_from(data)
    table = np.frombuffer(data, DOCUMENT, documents, HEADER.size)
    old = np.zeros(documents, [("offset", "<u8"), ("ids", "<u4")])
    body, end = b"", HEADER.size + old.nbytes
    for row, (offset, ids, key) in enumerate(table.tolist()):
        old[row] = (end + len(body) if ids != UNREAD else UNREAD), ids
        if ids != UNREAD:
            begin = offset + 4 * max(1, -(-ids // CHUNK)) + key
            text = data[begin : begin + width * ids]
            chunks = range(0, len(text), width * CHUNK)
            crcs = [zlib.crc32(text[at : at + width * CHUNK]) for at in chunks]
            body += np.array(crcs, "<u4").tobytes() + text
    front = magic, 1, width, documents, end + len(body), *digests
    crc = zlib.crc32(HEADER.pack(*front, 0) + old.tobytes())
    path.write_bytes(HEADER.pack(*front, crc) + old.tobytes() + body)


def assert_same(found, truth):
    for one, other in zip(found, truth, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.uids, other.uids)
        for name in ("views", "targets", "segments", "lengths"):
            for group, tensor in getattr(one, name).items():
                assert torch.equal(tensor, getattr(other, name)[group])


def test_files_of_version_1_are_read_and_made_anew(texts, packed):
    truth = batches(packed)
    for path in texts.glob("*.tok"):
        as_version_1(path)
        assert path.stat().st_size < token_path(packed / path.stem).stat().st_size
    assert_same(batches(texts), truth)
    assert_same(batches(texts, override=["stream.rows=null"]),
                batches(packed, override=["stream.rows=null"]))  # fmt: skip
    manifest = read_manifest(texts)
    assert not [f for shard in manifest.shards for f in stored_faults(manifest, shard)]
    tar = texts / manifest.shards[0].file  # their keys are the tar's
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(SampleError, match="damaged tar header"):
        batches(texts, 20, override=["stream.on_bad=raise"])
    shutil.copy(packed / tar.name, tar)
    count(texts, rebuild=True)
    for path in texts.glob("*.tok"):
        assert path.read_bytes() == (packed / path.name).read_bytes()


@pytest.mark.parametrize(
    "override",
    [
        (),
        ("stream.remainder=short", "stream.order=sequential"),
        ("stream.rows.packing=split", "stream.rows.bucket=true"),
    ],
)
def test_rows_of_steps_in_a_row_are_those_asked_alone(packed, override):
    """Over ends of epochs, and after jumps to and fro."""

    def load():
        text = RECIPE.format(
            vocabulary=json.dumps(str(packed / "tokenizer.json")), packing="best_fit", workers=0
        )
        recipe = parse_recipe(text, path="t.yaml", overrides=override)
        return sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1)

    with load() as pipe:
        last = len(pipe)
        for step in (*range(2 * last + 3), 2, 3, 4, 5 * last - 1, 5 * last, 1):
            found = pipe.source.wants(step)
            with load() as fresh:
                alone = fresh.source.planned([step])[0]
            for name in ("positions", "epochs", "shards", "rows", "valid", "segments"):
                assert np.array_equal(getattr(found, name), getattr(alone, name)), (step, name)
            assert found.segments[:, 0].max() < 5


def batch_alone(pipe, step):
    """A batch of which nothing is read or drawn with other steps'."""
    return pipe.make_batch(pipe.load_share(step), step)


def test_what_is_read_and_drawn_for_several_steps_is_what_it_is_alone(packed):
    """Over an end of an epoch; hidden tokens are drawn in the same go, and used."""
    text = RECIPE.format(
        vocabulary=json.dumps(str(packed / "tokenizer.json")), packing="best_fit", workers=0
    )
    with sslpipe.load(parse_recipe(text, path="t.yaml"), shards=packed, device="cpu") as pipe:
        drawn = 0
        for step in range(len(pipe) + 6):
            share = pipe.loading.load_ahead(step)
            (ahead,) = share.drawn
            column = share.columns[0]
            drawn += ahead.are_of(epochs=share.epochs, uids=share.uids, extents=column.extents)
            assert_same([pipe.make_batch(share, step)], [batch_alone(pipe, step)])
        assert drawn == len(pipe) + 6


def test_a_file_that_is_missing_is_told_at_the_step_that_needs_it(texts):
    text = RECIPE.format(
        vocabulary=json.dumps(str(texts / "tokenizer.json")), packing="best_fit", workers=0
    )
    order = ["stream.order=sequential", "stream.rows.window=10"]
    recipe = parse_recipe(text, path="t.yaml", overrides=order)
    with sslpipe.load(recipe, shards=texts, device="cpu", rank=0, world_size=1) as pipe:
        last = len(read_manifest(texts).shards) - 1
        needs = [last in pipe.source.wants(step).shards for step in range(len(pipe))]
        for path in texts.glob(f"*{last:06d}.tar.tok"):
            path.unlink()
        for step in range(needs.index(True)):
            pipe.loading.load_ahead(step)
        assert needs.index(True) > 3
        with pytest.raises(ShardError, match="tok: cannot be opened"):
            pipe.loading.load_ahead(needs.index(True))


@pytest.mark.parametrize("answer", ["nothing", "a part", "not told"])
def test_what_is_not_in_memory_is_fetched_and_then_read(packed, monkeypatch, answer):
    truth, real, asked = batches(packed), os.preadv, []

    def preadv(file, buffers, offset, flags=0):
        if not flags or answer == "a part":
            return real(file, [buffers[0][: len(buffers[0]) // (2 if flags else 1)]], offset)
        raise OSError(errno.EAGAIN if answer == "nothing" else errno.EOPNOTSUPP, "not now")

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "posix_fadvise", lambda *args: asked.append(args))
    assert_same(batches(packed), truth)
    assert len(asked) > len(truth)


def test_a_file_of_a_later_version_is_refused(texts):
    path = token_path(texts / read_manifest(texts).shards[0].file)
    data = bytearray(path.read_bytes())
    data[8] = 3
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match=r"format 3, this one reads up to 2\); upgrade"):
        batches(texts)


def test_nothing_in_the_tars_is_read_and_no_worker_is_started(texts, packed, monkeypatch):
    truth = batches(packed)
    for shard in read_manifest(texts).shards:
        tar = texts / shard.file
        tar.write_bytes(bytes(tar.stat().st_size))
    monkeypatch.setattr(crews, "Workers", None)
    assert_same(batches(texts, workers=3), truth)


def test_few_files_are_open_and_a_document_is_whole_whatever_is_closed(texts, packed, monkeypatch):
    truth = batches(packed, packing="concat")
    monkeypatch.setattr(token_pieces, "open_files", lambda: 1)
    opened, files = [], TokenFiles()
    real = token_pieces.open_tokens
    monkeypatch.setattr(token_pieces, "open_tokens", lambda *a: opened.append(a) or real(*a))
    monkeypatch.setattr(stored_tokens, "OPENED", files)
    assert_same(batches(texts, packing="concat"), truth)
    assert len(opened) > len(read_manifest(texts).shards)
    assert len(files._open) == 1


@pytest.mark.parametrize(
    ("packing", "workers"), [("best_fit", 0), ("concat", 0), ("split", 2), (None, 0)]
)
def test_rows_are_the_same_and_no_text_is_read(texts, tmp_path, packing, workers):
    plain = Path(shutil.copytree(texts, tmp_path / "plain"))
    without_ids(plain)
    override = [] if packing else ["stream.rows=null"]
    truth = batches(plain, packing=packing or "one", override=override)
    spoil_payloads(texts)
    found = batches(texts, packing=packing or "one", workers=workers, override=override)
    assert_same(found, truth)
    without_ids(texts)
    with pytest.raises(SampleError, match="CRC32"):
        batches(texts, override=["stream.on_bad=raise"])


def piece_of(file, row, start, stop):
    """Key and ids of a piece, alone; None: it is damaged."""
    documents = DocumentTable.of([(file, np.array([row]))])
    found = documents.pieces(np.array([start]), np.array([stop]), Buffers())
    if found.damaged:
        return None
    return found.keys[0], np.frombuffer(found.ids[0], f"<u{file.width}")


@pytest.mark.parametrize("width", [2, 4])
def test_any_range_of_any_document(tmp_path, width):
    rng = np.random.default_rng(0)
    of = TokenFileOf("b2:" + "0f" * 16, "a1" * 32)
    sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]
    documents = [rng.integers(0, 2 ** (8 * width - 1), n).astype(np.int32) for n in sizes]
    with token_writer(tmp_path / "x.tok", of, documents=len(sizes) + 1, width=width) as writer:
        for row, ids in enumerate(documents):
            writer.add(row, f"d/{row}ö", ids)
    written = file_bytes(np.array(sizes), np.full(len(sizes), 5), width) + DOCUMENT.itemsize
    assert (tmp_path / "x.tok").stat().st_size == written
    file = open_tokens(tmp_path / "x.tok", of)
    assert file.counts.tolist() == [*sizes, UNREAD]
    for row, ids in enumerate(documents):
        edges = sorted({0, 1, len(ids) // 2, CHUNK - 1, CHUNK, 2 * CHUNK + 3, len(ids)})
        for start in (e for e in edges if e <= len(ids)):
            for stop in (e for e in edges if start <= e <= len(ids)):
                key, piece = piece_of(file, row, start, stop)
                assert key == f"d/{row}ö"
                assert np.array_equal(piece, ids[start:stop])


def test_a_piece_reads_only_its_own_chunks(tmp_path):
    of = TokenFileOf("b2:" + "0f" * 16, "a1" * 32)
    ids = np.arange(4 * CHUNK, dtype=np.int32)
    path = tmp_path / "x.tok"
    with token_writer(path, of, documents=1, width=2) as writer:
        writer.add(0, "a", ids)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the last chunk
    data[-3 * 2 * CHUNK - 1] ^= 1  # of the first
    path.write_bytes(bytes(data))
    file = open_tokens(path, of)
    assert np.array_equal(piece_of(file, 0, CHUNK, 3 * CHUNK)[1], ids[CHUNK : 3 * CHUNK])
    for start, stop in ((0, 1), (CHUNK - 1, CHUNK + 1), (4 * CHUNK - 1, 4 * CHUNK)):
        assert piece_of(file, 0, start, stop) is None


def test_a_changed_key_is_noticed_by_every_piece(tmp_path):
    of = TokenFileOf("b2:" + "0f" * 16, "a1" * 32)
    path = tmp_path / "x.tok"
    with token_writer(path, of, documents=2, width=2) as writer:
        writer.add(0, "first", np.arange(3 * CHUNK, dtype=np.int32))
        writer.add(1, "empty", np.empty(0, dtype=np.int32))
    good = path.read_bytes()
    for key, row, starts in ((b"first", 0, (0, 1, CHUNK, 3 * CHUNK)), (b"empty", 1, (0,))):
        path.write_bytes(good)
        assert piece_of(open_tokens(path, of), row, starts[-1], starts[-1])[0] == key.decode()
        path.write_bytes(good.replace(key, b"other"))
        for start in starts:
            stop = start + min(5, 3 * CHUNK - start) * (row == 0)
            assert piece_of(open_tokens(path, of), row, start, stop) is None


def test_every_changed_byte_is_noticed(texts):
    manifest = read_manifest(texts)
    shard = manifest.shards[1]
    path = token_path(texts / shard.file)
    good = path.read_bytes()
    assert not [*stored_faults(manifest, shard)]
    for at in np.random.default_rng(0).choice(len(good), 60, replace=False).tolist():
        data = bytearray(good)
        data[at] ^= 4
        path.write_bytes(bytes(data))
        assert [*stored_faults(manifest, shard)], at
    for end in (0, 50, 200, len(good) - 1):
        path.write_bytes(good[:end])
        with pytest.raises(ShardError, match=r"is no token file|was cut or changed"):
            open_tokens(path, TokenFileOf(manifest.counted["tok"], shard.sha256))


def test_what_is_stale_or_missing_is_told(texts, packed, tmp_path, caplog):
    manifest = read_manifest(texts)
    first = token_path(texts / manifest.shards[0].file)
    first.write_bytes(token_path(texts / manifest.shards[1].file).read_bytes())
    with pytest.raises(ShardError, match=r"of another tar; run `sslpipe tokenizer count`"):
        batches(texts)
    first.unlink()
    with pytest.raises(ShardError, match="tok: cannot be opened"):
        batches(texts)
    count(texts, rebuild=True)  # keeps its ids without being told to
    assert len(batches(texts, 2)) == 2
    made = train_vocabulary(manifest, TrainSettings(kind="bpe", size=280))
    (texts / "tokenizer.json").write_bytes(made.data)
    with caplog.at_level(logging.WARNING):  # rows without counts would be refused anyway
        batches(texts, 1, override=["stream.rows=null"])
    assert "are those of b2:" in caplog.text
    assert "documents are tokenised in every epoch" in caplog.text


def test_a_damaged_document_is_a_bad_sample(texts):
    manifest = read_manifest(texts)
    good = batches(texts)
    for shard in manifest.shards:
        path = token_path(texts / shard.file)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    with pytest.raises(SampleError, match=r"tokens in .*\.tok do not have their CRC-32"):
        batches(texts, 20, override=["stream.on_bad=raise"])
    found = batches(texts, override=["stream.max_bad_fraction=1"])
    holes = [(b.segments["tokens"][0] < 0) & (g.segments["tokens"][0] >= 0) for b, g in
             zip(found, good, strict=True)]  # fmt: skip
    assert sum(int(h.sum()) for h in holes) > 0
    for batch, truth, hole in zip(found, good, holes, strict=True):
        assert (batch.views["tokens"][0] == truth.views["tokens"][0])[~hole].all()


def test_counting_goes_on_where_it_stopped_and_forgets_ids_of_another_vocabulary(
    texts, monkeypatch
):
    tars = {p.name: p.read_bytes() for p in texts.glob("*.tar")}
    wanted = {p.name: p.read_bytes() for p in texts.glob("*.tok")}
    without_ids(texts)
    real, seen = counting.write_counts, []

    def failing(job):
        seen.append(job.shard.file)
        if len(seen) == 3:
            raise OSError(28, "No space left on device", "x.tok")
        return real(job)

    monkeypatch.setattr(counting, "write_counts", failing)
    with pytest.raises(ShardError, match="No space left"):
        count(texts, ids=True)
    assert "tok" not in read_manifest(texts).counted
    first = [*seen]
    count(texts, ids=True)
    assert set(first[:2]).isdisjoint(seen[len(first) :])
    assert {p.name: p.read_bytes() for p in texts.glob("*.tok")} == wanted
    assert read_manifest(texts).counted.keys() == {"tokens", "tok"}
    (number,) = {len(seen)}
    count(texts, ids=True)
    assert len(seen) == number
    write_bpe(texts, "other.json", 270)
    count(texts, "other.json")
    assert read_manifest(texts).counted.keys() == {"tokens"}
    assert not [*texts.glob("*.tok")]
    assert {p.name: p.read_bytes() for p in texts.glob("*.tar")} == tars


def test_an_unreadable_document_has_no_ids(texts):
    manifest = read_manifest(texts)
    without_ids(texts)
    tar = texts / manifest.shards[0].file
    data = bytearray(tar.read_bytes())
    data[int(read_index(tar).payload(4).offset)] ^= 1
    tar.write_bytes(bytes(data))
    assert count(texts, ids=True).empty == 1
    assert isinstance(batches(texts)[0].keys, tuple)
    with pytest.raises(SampleError, match="could not be read when its tokens were counted"):
        batches(texts, 20, override=["stream.rows=null", "stream.on_bad=raise"])


def test_the_command_says_the_size_before_and_verify_finds_damage(run, texts):
    size = sum(p.stat().st_size for p in texts.glob("*.tok"))
    exact, _ = run("tokenizer", "count", texts, "--dry-run")
    assert re.search(rf"4 files beside the tars of .*, about {size / 1e6:.1f} MB: ", exact)
    tokens = int(re.search(r"MB: ([\d,]+) tokens of 2 bytes", exact)[1].replace(",", ""))
    document = json.loads((texts / "manifest.json").read_text())
    without_ids(texts)
    document["counted"] = {}
    (texts / "manifest.json").write_text(json.dumps(document))
    about, _ = run("tokenizer", "count", texts, "--dry-run")
    guess = int(re.search(r"about ([\d,]+) tokens of 2 bytes", about)[1].replace(",", ""))
    assert guess == pytest.approx(tokens, rel=0.02)
    assert not [*texts.glob("*.tok")]
    run("tokenizer", "count", texts, "--ids", "--workers", 1)
    run("verify", texts)
    path = next(texts.glob("*.tok"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert "do not have their CRC-32" in "".join(run("verify", texts, code=1))


def test_only_sets_that_have_ids_are_read_so(texts):
    recipe = parse_recipe(
        RECIPE.format(vocabulary=str(texts / "tokenizer.json"), packing="one", workers=0),
        path="t.yaml",
    )
    with sslpipe.load(recipe, shards=texts, device="cpu") as pipe:
        (part,) = pipe.parts
        manifest = read_manifest(texts)
        assert isinstance(part.stored, StoredTokens)
        assert isinstance(part.over([manifest]).stored, StoredTokens)
        without_ids(texts)
        assert part.over([read_manifest(texts)]).stored is None
