"""Folder trees and several inputs at once: pytest tests/shards/make/test_inputs.py"""

import os
from pathlib import Path

import fsspec
import pytest

from sslpipe.errors import ExtraError, ShardError
from sslpipe.rng import sample_id
from sslpipe.shards.make.inputs import folders
from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.make.source import Note, Origin, read


def offer(*inputs, out="nowhere", extensions=("jpg", "png"), **settings):
    return list_inputs(inputs, out=out, extensions=extensions, **settings)


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.fixture
def bucket():
    """A folder of the in-memory store, emptied afterwards."""
    store = fsspec.filesystem("memory")
    yield "memory://bucket/photos"
    store.rm("/bucket", recursive=True)


def put(bucket, *names):
    store = fsspec.filesystem("memory")
    for name in names:
        store.pipe_file(f"{bucket}/{name}", name.encode())


def test_a_tree_with_all_it_says(tmp_path):
    root = write(tmp_path / "in", "b/2.JPG", "a/1.jpg", "a/n.v1.png", "0.jpg", "b/x.gif")
    listing = offer(root)
    assert [
        (s.key, s.file, s.ext, s.label, s.size, s.extras, read(s.place)) for s in listing.sources
    ] == [
        ("0", "0.jpg", "jpg", -1, 5, (), b"0.jpg"),
        ("a/1", "a/1.jpg", "jpg", 0, 7, (), b"a/1.jpg"),
        ("a/n_v1", "a/n.v1.png", "png", 0, 10, (), b"a/n.v1.png"),
        ("b/2", "b/2.JPG", "jpg", 1, 7, (), b"b/2.JPG"),
    ]
    assert [s.uid for s in listing.sources] == [sample_id(s.key) for s in listing.sources]
    assert listing.skipped == (Note("b/x.gif", "no extension of a payload"),)
    assert listing.classes == ("a", "b")


def test_places_hold_in_another_working_folder(tmp_path, monkeypatch):
    write(tmp_path / "in", "a.jpg")
    monkeypatch.chdir(tmp_path)
    (source,) = offer("in").sources
    monkeypatch.chdir("/")
    assert read(source.place) == b"a.jpg"


def test_a_store_offers_what_the_same_folder_offers(tmp_path, bucket):
    names = ("cat/1.jpg", "cat/1.txt", "dog/deep/2.png", "3.jpg", "3.json", ".hid/4.jpg", "._5.jpg")
    here, there = offer(write(tmp_path / "in", *names)), None
    put(bucket, *names)
    there = offer(bucket, out=tmp_path)

    def facts(listing):
        return [
            (s.key, s.file, s.label, s.size, read(s.place), [(e, read(p)) for e, p in s.extras])
            for s in listing.sources
        ]

    assert facts(there) == facts(here)
    assert len(facts(there)) == 3
    assert (there.classes, there.skipped) == (here.classes, here.skipped)


def test_shards_in_the_store_are_left_out(bucket):
    put(bucket, "a.jpg", "shards/old.jpg", "shards2/new.jpg")
    assert [s.key for s in offer(bucket, out=f"{bucket}/shards").sources] == ["a", "shards2/new"]


def test_texts_beside_an_image_come_along(tmp_path):
    names = ("a.jpg", "a.png", "a.TXT", "a.txt", "b.v1.jpg", "b.v1.json", "b.json", "c.caption")
    listing = offer(write(tmp_path / "in", *names))
    extras = {s.file: [(e, read(p)) for e, p in s.extras] for s in listing.sources}
    assert extras == {
        "a.jpg": [("txt", b"a.TXT")],
        "a.png": [("txt", b"a.TXT")],
        "b.v1.jpg": [("json", b"b.v1.json")],
    }
    assert [note.file for note in listing.skipped] == ["a.txt", "b.json", "c.caption"]


def test_several_inputs_keep_keys_apart_and_merge_classes(tmp_path):
    one = write(tmp_path / "one", "cat/1.jpg", "dog/2.jpg")
    two = write(tmp_path / "two", "ant/3.jpg", "cat/1.jpg", "4.jpg")
    listing = offer(one, two)
    assert listing.classes == ("ant", "cat", "dog")
    assert {s.key: (s.file, s.label) for s in listing.sources} == {
        "cat/1": (f"{one}: cat/1.jpg", 1),
        "dog/2": (f"{one}: dog/2.jpg", 2),
        "ant/3": (f"{two}: ant/3.jpg", 0),
        "cat/1_2": (f"{two}: cat/1.jpg", 1),
        "4": (f"{two}: 4.jpg", -1),
    }


def test_a_file_named_twice_is_packed_once_and_told(tmp_path):
    root = write(tmp_path / "in", "cat/1.jpg", "dog/2.jpg")
    listing = offer(root, root / "cat")
    assert [s.key for s in listing.sources] == ["cat/1", "dog/2"]
    assert listing.skipped == (Note(f"{root / 'cat'}: 1.jpg", "is named again; the first is used"),)


def test_braces_and_globs(tmp_path, bucket):
    for number in range(3):
        write(tmp_path / f"part{number}", f"{number}.jpg")
    put(bucket, "p0/a.jpg", "p1/b.jpg")
    keys = [s.key for s in offer(f"{tmp_path}/part{{0..1}}").sources]
    assert keys == ["0", "1"]
    assert [s.key for s in offer(f"{tmp_path}/part*").sources] == ["0", "1", "2"]
    assert [s.key for s in offer(f"{bucket}/p*").sources] == ["a", "b"]
    odd = write(tmp_path / "what{1}[x]", "x.jpg")  # a name that exists means itself
    assert [s.key for s in offer(odd).sources] == ["x"]


def test_pipes_and_closed_folders_are_told(tmp_path, monkeypatch):
    root = write(tmp_path / "in", "a.jpg", "closed/b.jpg")
    os.mkfifo(root / "pipe.jpg")
    scan = folders.scan

    def closed(folder):
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(folders, "scan", closed)
    assert offer(root).skipped == (
        Note("pipe.jpg", "is no regular file"),
        Note("closed", "cannot be listed: Permission denied"),
    )


def test_links_are_resolved_once_and_plain_folders_never(tmp_path, monkeypatch):
    root = write(tmp_path / "in", *(f"{i}/{i}.jpg" for i in range(20)))
    (root / "again").symlink_to(root / "3")
    (root / "3" / "up").symlink_to(root)
    calls = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: (calls.append(path), real(path))[1])
    assert len(offer(root).sources) == 21
    assert len(calls) <= 2 + 3  # out, root and each time that a link is met


def test_progress_counts_files(tmp_path, monkeypatch):
    monkeypatch.setattr("sslpipe.shards.make.listing.TELL", 2)
    told = []
    offer(write(tmp_path / "in", *(f"{i}.jpg" for i in range(5))), progress=told.append)
    assert told == [2, 4, 5]
    told.clear()
    offer(tmp_path / "in", write(tmp_path / "b", "x.jpg"), progress=told.append)
    assert told == [2, 4, 5, 6]


def test_fingerprint_knows_every_fact_and_nothing_else(tmp_path):
    root = write(tmp_path / "in", "a/1.jpg", "a/2.jpg")
    first = offer(root).fingerprint
    assert first == offer(root).fingerprint
    assert first.startswith("b2:")
    seen = {first}
    (root / "a" / "1.jpg").write_bytes(b"longer than before")
    seen.add(offer(root).fingerprint)
    write(root, "a/1.txt")
    seen.add(offer(root).fingerprint)
    (root / "a" / "2.jpg").rename(root / "a" / "3.jpg")
    seen.add(offer(root).fingerprint)
    (root / "a").rename(root / "b")
    seen.add(offer(root).fingerprint)
    root.rename(tmp_path / "moved")
    seen.add(offer(tmp_path / "moved").fingerprint)
    assert len(seen) == 6
    write(tmp_path / "moved", "notes.doc")  # not packed
    assert offer(tmp_path / "moved").fingerprint in seen


def test_a_name_in_no_encoding_has_a_fingerprint(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    listing = offer(tmp_path / "in")
    assert [s.key for s in listing.sources] == ["caf_"]
    assert listing.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "does not exist; check the path"),
        ("notes.doc", "none of .txt, .csv"),
        ("set.tar.gz", "is compressed, which leaves no place to read from; unpack it"),
        ("set.tgz", "is compressed"),
        ("empty", r"holds nothing to pack \(looked for .jpg, .png\)"),
        ("set-*.tar", "matches nothing"),
        ("memory://nothing/here", "holds nothing to pack"),
        ("memory://bucket/file.doc", "is a file of unknown kind"),
        ("unheardof://a/b", "Protocol not known"),
        ("memory://bucket/gone.tar", "cannot be read"),
    ],
)
def test_mistakes_are_found_at_once(tmp_path, bucket, monkeypatch, name, message):
    write(tmp_path, "notes.doc", "set.tar.gz", "set.tgz")
    (tmp_path / "empty").mkdir()
    fsspec.filesystem("memory").pipe_file("/bucket/file.doc", b"x")
    put(bucket, "a.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match=f"^{name.replace('*', '.')}: .*{message}"):
        offer(name)


def test_no_input_at_all():
    with pytest.raises(ShardError, match="there are none"):
        offer()


def test_a_missing_client_is_named(monkeypatch):
    def missing(url, **options):
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ExtraError, match=r"pip install \"sslpipe\[s3\]\""):
        offer("s3://bucket/photos")
    with pytest.raises(ExtraError, match="gcsfs"):
        read(Origin("gs://bucket/a.jpg"))


def test_file_urls_are_paths(tmp_path):
    root = write(tmp_path / "in", "a.jpg")
    (source,) = offer(f"file://{root}").sources
    assert source.place == Origin(str(Path(root) / "a.jpg"))
