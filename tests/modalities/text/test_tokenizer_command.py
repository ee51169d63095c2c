"""`sslpipe tokenizer train` and `count`: files, counts, what is refused, kill and rerun."""

import gzip
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import sslpipe
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.text import counting
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.trained import open_vocabulary
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.modalities.text.vocabulary import document_of
from sslpipe.shards import PackSettings, open_threads, pack, read_index, read_manifest, verify
from sslpipe.shards.contents import extract_sample, find_key, list_keys
from sslpipe.shards.exclude import exclude_rows
from sslpipe.shards.make import reindex
from sslpipe.shards.make.adopt import adopt
from sslpipe.shards.scan import Rules
from sslpipe.shards.verification import Problem

from ...conftest import write_images
from .counted import random_words


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Forty documents in four shards, from a compressed file of lines."""
    rng = np.random.default_rng(2)
    words = random_words(rng)
    file, out = tmp_path_factory.mktemp("lines") / "docs.jsonl.gz", tmp_path_factory.mktemp("set")
    lines = [
        json.dumps({"text": " ".join(rng.choice(words, 5 + n)), "label": n % 3}) for n in range(40)
    ]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    settings = PackSettings(codec=TextCodec(), shard_samples=10)
    pack(file, out / "text", settings)
    return out / "text"


@pytest.fixture
def texts(packed, tmp_path):
    """A set that may be changed."""
    return Path(shutil.copytree(packed, tmp_path / "text"))


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def counts(folder):
    """Key -> tokens by the indexes."""
    manifest = read_manifest(folder)
    return {
        key: extract_sample(manifest, *find_key(manifest, key)).extent["tokens"]
        for key in list_keys(manifest)
    }


def test_train_then_count(run, texts):
    before = content(texts)
    out, _ = run("tokenizer", "train", texts, "--kind", "bpe", "--size", 300, "--sentinels", 2)
    vocabulary = open_vocabulary(str(texts / "tokenizer.json"), "t")
    assert vocabulary.size == 302
    assert f"302 ids of 40 documents, 0.0 MB; {vocabulary.fingerprint}" in out
    out, _ = run("tokenizer", "count", texts, "--workers", 1)
    manifest = read_manifest(texts)
    wanted = {
        key: len(
            vocabulary.encode(
                document_of(extract_sample(manifest, *find_key(manifest, key)).members["txt"])
            )
        )
        for key in list_keys(manifest)
    }
    assert counts(texts) == wanted
    assert len(set(wanted.values())) > 10
    assert f"{sum(wanted.values()):,} tokens in 40 documents" in out
    assert manifest.counted == {"tokens": vocabulary.fingerprint}
    after = content(texts)
    assert {name for name in before if before[name] != after[name]} == {
        "manifest.json",
        *(name for name in before if name.endswith(".idx")),
    }  # no tar
    assert set(after) - set(before) == {"tokenizer.json"}
    assert manifest.fingerprint == read_manifest_of(before, texts).fingerprint
    assert verify(manifest, codec=TextCodec()) == []
    run("tokenizer", "count", texts, "--workers", 1)
    assert content(texts) == after


def text_at(manifest, key):
    return document_of(extract_sample(manifest, *find_key(manifest, key)).members["txt"])


def read_manifest_of(before, folder):
    """The manifest that was there."""
    old = folder.parent / "old"
    old.mkdir()
    (old / "manifest.json").write_bytes(before["manifest.json"])
    return read_manifest(old)


def test_what_packing_measured_is_still_checked(texts):
    """A count in the index must not blind `verify` to the bytes of a text."""
    manifest = read_manifest(texts)
    shard = manifest.shards[0]
    index = read_index(texts / shard.file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reindex, "load_index", lambda *_: index)
        folder = reindex.staged(manifest, "x")
        reindex.reindexed(manifest, shard, folder, 0, 7)
    for other in manifest.shards[1:]:
        reindex.reindexed(manifest, other, folder, 1, 5)
    changed = reindex.publish_indexes(manifest, folder)
    found = verify(changed, codec=TextCodec())
    assert len(found) == 10
    assert all("the index says 7 x 0" in problem.what for problem in found)


class Killed(BaseException):
    """Nothing of ours catches it or cleans up after it, as after a SIGKILL."""


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("write_index", 0),
        ("write_index", 2),
        ("write_manifest", 0),
        ("write_manifest", 1),
        ("write_manifest", 2),
        ("index_path", 6),  # while indexes are moved
    ],
)
def test_killed_at_any_moment_and_run_again(texts, moment, number, tmp_path, monkeypatch):
    file = train_bpe(texts)
    exclude_rows(read_manifest(texts), problems=[Problem("docs-000000.tar", "k", "bad", 3)])
    clean = Path(shutil.copytree(texts, tmp_path / "clean"))
    count(clean, file)
    calls, real = [], getattr(reindex, moment)

    def killing(*words):
        calls.append(0)
        if len(calls) > number:
            raise Killed
        return real(*words)

    with monkeypatch.context() as patch:
        patch.setattr(reindex, moment, killing)
        with pytest.raises(Killed):
            count(texts, file)
    assert content(texts) != content(clean)
    if moment == "write_index":  # the old set is whole
        assert verify(read_manifest(texts), codec=TextCodec()) == []
    count(texts, file)
    assert content(texts) == content(clean)
    manifests = list(clean.glob("manifest*.json"))  # the one before the exclusion, too
    assert len(manifests) == 2
    for manifest in manifests:
        assert verify(read_manifest(manifest), codec=TextCodec()) == []
        assert read_manifest(manifest).counted


def train_bpe(folder):
    """A vocabulary beside the shards, as the command makes it."""
    made = train_vocabulary(read_manifest(folder), TrainSettings(kind="bpe", size=280))
    (folder / "tokenizer.json").write_bytes(made.data)
    return folder / "tokenizer.json"


def count(folder, file):
    with Inline() as pool:
        return counting.count_tokens(folder, str(file), pool=pool)


class Inline:
    """A pool that is no pool: what is raised in a job comes out at once."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def imap_unordered(self, function, items, chunksize):
        return (function(pickle.loads(pickle.dumps(item))) for item in items)


def test_what_was_counted_before_a_kill_is_not_counted_again(run, texts, monkeypatch):
    run("tokenizer", "train", texts, "--kind", "bpe", "--size", 280)
    file, real, seen = str(texts / "tokenizer.json"), counting.write_counts, []

    def failing(job):
        seen.append(job.shard.file)
        if len(seen) == 3:
            raise OSError(28, "No space left on device", "x.idx")
        return real(job)

    monkeypatch.setattr(counting, "write_counts", failing)
    with open_threads(1) as pool:
        with pytest.raises(sslpipe.errors.ShardError, match="No space left"):
            counting.count_tokens(texts, file, pool=pool)
        first = [*seen]
        counting.count_tokens(texts, file, pool=pool)
    assert set(first[:2]).isdisjoint(seen[len(first) :])
    assert all(counts(texts).values())


def test_counting_for_another_vocabulary_replaces_the_counts(run, texts, tmp_path):
    run("tokenizer", "train", texts, "--kind", "bpe", "--size", 280)
    run("tokenizer", "train", texts, "--kind", "bytes", "--out", tmp_path / "b.json")
    run("tokenizer", "count", texts, "--workers", 1)
    first = counts(texts)
    run("tokenizer", "count", texts, "--workers", 1, "--tokenizer", tmp_path / "b.json")
    second, manifest = counts(texts), read_manifest(texts)
    assert sum(second.values()) > sum(first.values())
    assert second == {
        key: extract_sample(manifest, *find_key(manifest, key)).extent["bytes"] for key in second
    }


def test_indexing_again_keeps_counts_of_the_same_indexes_and_forgets_them_otherwise(run, texts):
    run("tokenizer", "train", texts, "--kind", "bpe", "--size", 280)
    run("tokenizer", "count", texts, "--workers", 1)
    for file in texts.glob("*.idx"):
        os.utime(file)
    adopt([str(texts)], rules=Rules(TextCodec()))
    assert read_manifest(texts).counted
    adopt([str(texts)], rules=Rules(TextCodec()), rebuild=True)
    assert not read_manifest(texts).counted
    assert not any(counts(texts).values())


def test_a_document_that_cannot_be_read_is_told_and_stands_in_no_row(run, texts):
    run("tokenizer", "train", texts, "--kind", "bpe", "--size", 280)
    manifest = read_manifest(texts)
    tar = texts / manifest.shards[1].file
    data = bytearray(tar.read_bytes())
    data[int(read_index(tar).payload(4).offset)] ^= 1
    tar.write_bytes(bytes(data))
    _, err = run("tokenizer", "count", texts, "--workers", 1, code=1)
    assert f"{tar.name} sample 4: the bytes of its .txt were changed" in err
    assert "1 documents have no tokens" in err
    assert read_index(tar).sample(4).extent[1] == 0
    _, err = run("tokenizer", "train", texts, "--kind", "bpe", "--size", 280, "--overwrite", code=1)
    assert "1 documents cannot be read" in err


def test_mistakes_are_one_line(run, texts, tmp_path):
    said = [
        ("train --kind bpe --size 100", "--size 100: of bpe it is 260 to 1,048,576"),
        ("train --kind bytes --size 300", "--size 300: bytes are always 260"),
        ("train --kind bpe --size 5000", "bpe makes 4.. ids: there are no more pieces"),
        ("train --kind wordpiece --size 8", "the signs alone are more"),
        ("train --kind bpe --size 300 --sentinels -1", "--sentinels -1: is 0 to 1,000"),
        ("train --kind bpe --size 300 --megabytes 0", "--megabytes 0.0: must be more than 0"),
        ("count", r"tokenizer.json': is none of bytes, bytes_t5, and no file seen from"),
        ("count --tokenizer bytes", "bytes are counted by packing"),
    ]
    for words, answer in said:
        command, *rest = words.split()
        _, err = run("tokenizer", command, texts, *rest, code=2)
        lines = [line for line in err.splitlines() if "error:" in line]
        assert len(lines) == 1
        assert re.search(answer, lines[0]), (words, err)
        assert "Traceback" not in err
    run("tokenizer", "train", texts, "--kind", "bytes")
    _, err = run("tokenizer", "train", texts, "--kind", "bytes", code=2)
    assert "tokenizer.json: exists; write elsewhere (--out), or --overwrite it" in err
    photos = tmp_path / "photos"
    write_images(photos, 2)
    pack(photos, tmp_path / "images", PackSettings(codec=ImageCodec()))
    _, err = run("tokenizer", "train", tmp_path / "images", "--kind", "bytes", code=2)
    assert "images: holds image, not text" in err
    _, err = run("tokenizer", "train", texts, "--kind", "bites", code=2)
    assert "'bites' is not one of" in err


def test_help_has_examples(run):
    for command in ("train", "count"):
        assert "Example: sslpipe tokenizer" in run("tokenizer", command, "--help")[0]
