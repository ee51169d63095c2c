"""Lists of paths, CSV, TSV and Parquet as inputs: pytest tests/shards/make/test_tables.py"""

import json
import os
import sys

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from sslpipe.errors import ExtraError, ShardError
from sslpipe.shards.make.inputs.found import Columns
from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.make.source import Note, read


def offer(*inputs, **settings):
    return list_inputs(inputs, out="nowhere", extensions={"jpg", "png"}, **settings)


@pytest.fixture
def photos(tmp_path):
    """Four files, which hold their own names."""
    for name in ("in/cat/1.jpg", "in/dog/2.v1.PNG", "in/3", "far/4.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "in"


@pytest.fixture
def table(photos):
    """Write rows as CSV, TSV or Parquet beside the photos."""

    def write(rows, ext="csv"):
        path = photos / f"table.{ext}"
        if ext == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            return path
        tab = "\t" if ext == "tsv" else ","
        lines = [tab.join(rows[0]), *(tab.join(str(v) for v in r.values()) for r in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        return path

    return write


def test_lists_take_relative_and_absolute_paths_and_urls(photos, tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/5.jpg", b"five")
    entries = ["cat/1.jpg", "./dog/2.v1.PNG", "", "3", str(tmp_path / "far/4.jpg"), "../far/4.jpg",
               "memory://bucket/5.jpg", str(photos / "cat" / "1.jpg"), "cat/._x.jpg",
               "gone.jpg"]  # fmt: skip
    (photos / "list.txt").write_bytes(("\r\n".join(entries) + "\n").encode())
    listing = offer(photos / "list.txt")
    assert {s.key: s.ext for s in listing.sources} == {
        "cat/1": "jpg",
        "dog/2_v1": "png",
        "3": "",  # whoever names a file wants it tried; the content decides
        str(tmp_path / "far/4").lstrip("/"): "jpg",
        "_/far/4": "jpg",
        "bucket/5": "jpg",
        "gone": "jpg",
    }
    good = [s for s in listing.sources if s.key != "gone"]
    assert sorted(read(s.place) for s in good) == sorted(
        [b"in/cat/1.jpg", b"in/dog/2.v1.PNG", b"in/3", b"far/4.jpg", b"far/4.jpg", b"five"]
    )
    assert [s.file for s in listing.sources if s.key == "3"] == ["3"]
    assert listing.classes == ()
    assert listing.skipped == (
        Note("cat/._x.jpg", "hidden file"),
        Note(str(photos / "cat" / "1.jpg"), "is named again; the first is used"),
    )
    store.rm("/bucket", recursive=True)


def test_keys_of_urls_hold_no_scheme_and_no_query(photos):
    entries = ["cat/1.jpg", "https://x.org/p/a.b.jpg?sig=../9", "https://x.org/img?id=1",
               "https://x.org/img?id=2", "simplecache::s3://b/c.png"]  # fmt: skip
    (photos / "list.txt").write_text("\n".join(entries))
    keys = {s.key: s.place.url for s in offer(photos / "list.txt").sources}
    assert keys == {
        "cat/1": str(photos / "cat/1.jpg"),
        "x.org/p/a_b": entries[1],
        "x.org/img": entries[2],
        "x.org/img_2": entries[3],
        "b/c": entries[4],
    }


def test_a_list_keeps_names_in_no_encoding(photos):
    name = b"caf\xe9.jpg"
    (photos / os.fsdecode(name)).write_bytes(b"x")
    (photos / "list.txt").write_bytes(name + b"\n")
    (source,) = offer(photos / "list.txt").sources
    assert (source.key, read(source.place)) == ("caf_", b"x")


def test_a_list_in_a_store_is_relative_to_its_folder():
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/a/1.jpg", b"one")
    store.pipe_file("/bucket/list.txt", b"a/1.jpg\n")
    (source,) = offer("memory://bucket/list.txt").sources
    store.rm("/bucket", recursive=True)
    assert (source.key, source.place.url) == ("a/1", "memory://bucket/a/1.jpg")


ROWS = [
    {"File": "cat/1.jpg", "class": "cat", "text": "A cat,", "width": 3},
    {"File": "dog/2.v1.PNG", "class": "dog", "text": "", "width": 4},
    {"File": "3", "class": "", "text": "é", "width": 5},
]


@pytest.mark.parametrize("ext", ["tsv", "parquet"])
def test_tables_give_labels_captions_and_further_columns(table, ext):
    listing = offer(table(ROWS, ext))
    assert listing.classes == ("cat", "dog")
    number = str if ext == "tsv" else int
    got = {s.key: (s.label, dict(s.extras)) for s in listing.sources}
    assert {key: label for key, (label, _) in got.items()} == {"cat/1": 0, "dog/2_v1": 1, "3": -1}
    assert got["cat/1"][1]["txt"] == b"A cat,"
    assert "txt" not in got["dog/2_v1"][1]
    assert got["3"][1]["txt"] == "é".encode()
    assert json.loads(got["3"][1]["json"]) == {"width": number(5)}


def test_columns_by_name_and_by_guess(table):
    rows = [{"url": "3", "path": "cat/1.jpg", "id": "k.1", "y": "b", "label": "a"}]
    (guessed,) = offer(table(rows)).sources
    assert guessed.key == "cat/1"
    assert json.loads(dict(guessed.extras)["json"]) == {"url": "3", "id": "k.1", "y": "b"}
    listing = offer(table(rows), columns=Columns(path="url", label="y", key="id"))
    (named,) = listing.sources
    assert (named.key, named.file, listing.classes) == ("k_1", "3", ("b",))


@pytest.mark.parametrize("ext", ["csv", "parquet"])
def test_numbers_stay_the_numbers_they_are(table, ext):
    labels = [3, -1, 0]
    rows = [{"path": r["File"], "label": n} for r, n in zip(ROWS, labels, strict=True)]
    listing = offer(table(rows, ext))
    assert listing.classes == ("0", "1", "2", "3")
    assert {s.file: s.label for s in listing.sources} == {
        r["path"]: r["label"] for r in rows
    }  # fmt: skip


@pytest.mark.parametrize("ext", ["csv", "tsv", "parquet"])
def test_missing_numbers_of_pandas(table, ext):
    gap = float("nan") if ext == "parquet" else ""
    labels = {"cat/1.jpg": 10.0, "3": gap, "dog/2.v1.PNG": 2.0}
    listing = offer(table([{"path": file, "label": n} for file, n in labels.items()], ext))
    assert {s.file: s.label for s in listing.sources} == {**labels, "3": -1}
    assert listing.classes == tuple(map(str, range(11)))
    assert listing.labels == "numbers, kept as they are"


@pytest.mark.parametrize("ext", ["csv", "tsv"])
def test_blanks_around_fields_are_nothing(photos, ext):
    rows = ["path, label ,text", 'cat/1.jpg, 1, "a; b"', "dog/2.v1.PNG,1 ,c", "3,  ,c"]
    text = "\n".join(rows).replace(",", "\t" if ext == "tsv" else ",").replace(";", ",")
    (photos / f"t.{ext}").write_text(text)
    listing = offer(photos / f"t.{ext}")
    assert {s.file: s.label for s in listing.sources} == {
        "cat/1.jpg": 1,
        "dog/2.v1.PNG": 1,
        "3": -1,
    }
    assert dict(listing.sources[1].extras)["txt"] == b"a, b"


@pytest.mark.parametrize("ext", ["csv", "parquet"])
def test_blanks_around_names_make_no_class(table, ext):
    rows = [{"path": "cat/1.jpg", "label": "cat"}, {"path": "3", "label": "cat "}]
    assert offer(table(rows, ext)).classes == ("cat",)


def test_long_captions_are_read(table):
    (source,) = offer(table([{"path": "3", "caption": "x" * 140_000}])).sources
    assert dict(source.extras)["txt"] == b"x" * 140_000


def test_numbers_among_names_are_names(table):
    rows = [{"path": "cat/1.jpg", "label": "007"}, {"path": "3", "label": "7"}]
    assert offer(table(rows)).classes == ("007", "7")


def test_bad_rows_are_told_and_the_rest_is_used(photos):
    (photos / "t.csv").write_text("path,label\ncat/1.jpg,a\n,b\n3,c,d\ngone.jpg,a\n")
    listing = offer(photos / "t.csv")
    assert [s.file for s in listing.sources] == ["cat/1.jpg", "gone.jpg"]
    assert listing.skipped == (
        Note("row 2", "has no path"),
        Note("row 3", "has more fields than the header"),
    )


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("a.txt", "x.jpg\ny.jpg\n", {}, "none of its first 2 entries exists, e.g. 'x.jpg'; .* to"),
        ("a.csv", "path\nx.jpg\n", {}, "none of its first 1 entries exists"),
        ("a.csv", "path,label\n3,1\n", {"label": "lable"}, "no column 'lable'; did you mean"),
        ("a.csv", "name,label\n3,1\n", {}, "name it, --columns path=NAME. Known: label, name"),
        ("a.csv", "path,label\n3,-5\n", {}, "-5 is no class number"),
        ("a.csv", "path\n", {}, "holds nothing to pack"),
        ("a.csv", "", {}, "no column of paths"),
        ("a.txt", "\n\n", {}, "holds nothing to pack"),
        ("a.csv", 'path\n"' + "x" * 2_000_000, {}, "is no CSV"),
        ("a.parquet", "no parquet", {}, "is no Parquet file"),
    ],
)  # fmt: skip
def test_mistakes_are_found_at_once(photos, name, text, columns, message):
    (photos / name).write_text(text)
    with pytest.raises(ShardError, match=message):
        offer(photos / name, columns=Columns(**columns))


def test_several_captions_are_lines(table):
    (source,) = offer(table([{"path": "3", "caption": ["one", "two"]}], "parquet")).sources
    assert source.extras == (("txt", b"one\ntwo"),)


def test_a_column_that_holds_no_paths(table):
    with pytest.raises(ShardError, match="column 'image' holds dict, not paths"):
        offer(table([{"image": {"bytes": b"x", "path": "a.jpg"}}], "parquet"))


def test_parquet_without_pyarrow(table, monkeypatch):
    path = table(ROWS, "parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraError, match=r"pip install sslpipe\[tables\]"):
        offer(path)
