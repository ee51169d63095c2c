"""Lines of JSON and tables of texts as inputs: pytest tests/shards/make/test_documents.py"""

import gzip
import json

import pyarrow
import pytest
from pyarrow import parquet

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.vocabulary import document_of
from sslpipe.shards import PackSettings, estimate, open_threads, pack, read_manifest
from sslpipe.shards.contents import extract_sample, find_key, list_keys
from sslpipe.shards.make.inputs.found import Columns
from sslpipe.shards.make.source import Note

ROWS = [
    {"text": "plain", "label": "b"},
    {"text": "a\r\nb\0c\u2028 é 漢 🙂", "label": "a"},
    {"text": "\ufeffwith a mark", "label": "a"},
    {"text": '{"text": 7}', "label": "a", "key": "own/key.x"},
    {"text": '  {"no": "json', "label": "b", "key": 12},
    {"text": "x" * 5000, "label": None},
]
KEYS = ["docs-00000001", "docs-00000002", "docs-00000003", "own/key_x", "12", "docs-00000006"]


@pytest.fixture
def write(tmp_path):
    """Write rows, or lines as they are, as a file of one of the kinds."""

    def write(kind, rows=ROWS, name="docs"):
        path = tmp_path / f"{name}.{kind}"
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
        data = b"\n".join(lines) + b"\n"
        if kind == "parquet":
            full = [{"text": None, "label": None, "key": None} | row for row in rows]
            full = [row | {"key": None if row["key"] is None else str(row["key"])} for row in full]
            parquet.write_table(pyarrow.Table.from_pylist(full), path)
        else:
            path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
        return path

    return write


def packed(path, tmp_path, pool=None, **settings):
    """The report, and key -> (text, label, payload's extension)."""
    out = tmp_path / "out" / path.name.replace(".", "_")
    report = pack(path, out, PackSettings(codec=TextCodec(), **settings), pool=pool)
    manifest, found = read_manifest(out), {}
    for key in list_keys(manifest):
        sample = extract_sample(manifest, *find_key(manifest, key))
        name = manifest.classes[sample.label] if sample.label >= 0 else None
        found[key] = sample.members[sample.payload], name, sample.payload
    return report, found


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_every_line_is_a_document_whatever_it_holds(write, tmp_path, kind):
    report, found = packed(write(kind), tmp_path)
    assert not report.failures
    assert not report.skipped
    assert {key: name for key, (_, name, _) in found.items()} == {
        key: row["label"] for key, row in zip(KEYS, ROWS, strict=True)
    }
    for key, row in zip(KEYS, ROWS, strict=True):
        data, _, ext = found[key]
        wanted = row["text"].replace("\r\n", "\n").removeprefix("\ufeff")
        assert document_of(data) == wanted
        if ext == "txt":  # the bytes stay as they are
            assert data == row["text"].encode()
    assert {key for key, (_, _, ext) in found.items() if ext == "json"} == {"own/key_x", "12"}


def test_all_kinds_and_pools_give_the_same_bytes(write, tmp_path):
    made = []
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        out = tmp_path / kind
        with open_threads(2) as pool:
            pack(write(kind), out, PackSettings(codec=TextCodec(), shard_samples=2), pool=pool)
        made.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 7


BAD = [
    b'{"text": "good"}',
    b"",
    b'{"text": "caf\xe9"}',
    b'{"text": "half \\ud800"}',
    b'["text"]',
    b'{"body": "no text"}',
    b'{"text": "cut',
    b'{"text": "t", "label": {"a": 1}}',
    b'{"text": ""}',
]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
def test_what_is_no_document_is_in_the_report(write, tmp_path, kind):
    path = write(kind, BAD)
    report, found = packed(path, tmp_path)
    assert [*found] == ["docs-00000001"]
    said = {note.file.rpartition(":")[2]: note.reason for note in report.skipped}
    assert {number: reason.split(";")[0].split(" (")[0] for number, reason in said.items()} == {
        "3": "byte 13 of the line is not UTF-8",
        "4": "sign 5 of its text is no Unicode",
        "5": "is no JSON object but list",
        "6": "has no 'text' that is a text",
        "7": "is no JSON",
        "8": "its label \"{'a': 1}\" is no number and no name",
    }
    (failure,) = report.failures
    assert failure.reason.startswith("is an empty document")
    lines = (tmp_path / "out" / path.name.replace(".", "_") / "report.jsonl").read_text()
    assert len(lines.splitlines()) == 7


def test_columns_are_named(write, tmp_path):
    rows = [{"body": f"t{n}", "id": f"k{n}", "kind": n % 2, "text": "not this"} for n in range(4)]
    columns = Columns(text="body", key="id", label="kind")
    for kind in ("jsonl", "parquet"):
        path = tmp_path / f"x.{kind}"
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(map(json.dumps, rows)))
        _, found = packed(path, tmp_path, columns=columns)
        assert found == {f"k{n}": (f"t{n}".encode(), str(n % 2), "txt") for n in range(4)}


def test_bytes_in_a_table_are_text_or_told(tmp_path):
    path = tmp_path / "b.parquet"
    table = pyarrow.table({"text": pyarrow.array([b"caf\xc3\xa9", b"caf\xe9"], pyarrow.binary())})
    parquet.write_table(table, path)
    report, found = packed(path, tmp_path)
    assert [data for data, _, _ in found.values()] == ["café".encode()]
    assert [note.reason.split(";")[0] for note in report.skipped] == [
        "sign 3 of its text is no Unicode"
    ]


def test_a_table_of_paths_stays_one(tmp_path):
    (tmp_path / "a.txt").write_text("far")
    parquet.write_table(pyarrow.table({"path": ["a.txt"]}), tmp_path / "p.parquet")
    _, found = packed(tmp_path / "p.parquet", tmp_path)
    assert found == {"a": (b"far", None, "txt")}


def test_a_dry_run_knows_the_sizes(write, tmp_path):
    told = estimate(write("jsonl.gz"), tmp_path / "none", PackSettings(codec=TextCodec()))
    assert told.samples == len(ROWS)
    assert not (tmp_path / "none").exists()


def test_a_file_that_was_changed_is_read_anew(write, tmp_path):
    path = write("jsonl.gz")
    packed(path, tmp_path)
    write("jsonl.gz", [{"text": "new"}])
    out = tmp_path / "second"
    pack(path, out, PackSettings(codec=TextCodec()))
    assert [*list_keys(read_manifest(out))] == ["docs-00000001"]


def refused(path, tmp_path, codec=None, **settings):
    with pytest.raises(ShardError) as error:
        pack(path, tmp_path / "no", PackSettings(codec=codec or TextCodec(), **settings))
    return str(error.value)


def test_files_that_cannot_be_packed_are_refused_at_once(write, tmp_path):
    path = write("jsonl.gz")
    assert "holds documents; pack them with --modality text" in refused(
        path, tmp_path, ImageCodec()
    )
    told = refused(write("jsonl", [{"body": "x"}] * 9), tmp_path)
    assert "none of its first 8 documents can be used, e.g. number 1: has no 'text'" in told
    assert "--columns text=NAME" in told
    assert "has no column 'texts'; did you mean 'text'?" in refused(
        write("parquet"), tmp_path, columns=Columns(text="texts")
    )
    path.write_bytes(path.read_bytes()[:-20])
    assert "no gzip, or a damaged one" in refused(path, tmp_path)
    path.write_bytes(b"nothing of the kind")
    assert "no gzip, or a damaged one" in refused(path, tmp_path)
    assert "holds nothing to pack" in refused(write("jsonl", [b"", b" "]), tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_a_folder_of_files_of_documents_says_to_name_them(write, tmp_path, kind):
    write(kind)
    with pytest.raises(ShardError, match=rf"name its files, .*/\*\.{kind}$"):
        pack(tmp_path, tmp_path / "out", PackSettings(codec=TextCodec()))
    (tmp_path / "a.txt").write_text("beside them")
    out = pack(tmp_path, tmp_path / "out", PackSettings(codec=TextCodec()))
    assert out.skipped == (Note(f"docs.{kind}", "holds samples of its own; name it as an input"),)


def test_a_table_without_the_usual_column_of_texts_says_how_to_name_it(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(
        ShardError, match=r"no column 'text'; name it, --columns text=NAME\. .*body"
    ):
        pack(path, tmp_path / "out", PackSettings(codec=TextCodec()))
    settings = PackSettings(codec=TextCodec(), columns=Columns(text="body"))
    assert pack(path, tmp_path / "out", settings).manifest.samples == 1


@pytest.mark.parametrize("content", ['{"text": "abc', '["abc"]', "abc"])
def test_a_file_that_is_called_json_and_holds_no_object_is_no_document(tmp_path, content):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.json").write_text(content)
    (folder / "b.json").write_text('{"text": "abc"}')
    (folder / "c.txt").write_text(content)
    report = pack(folder, tmp_path / "out", PackSettings(codec=TextCodec()))
    (failure,) = report.failures
    assert failure.file == "a.json"
    assert "is called .json and holds no JSON object" in failure.reason


def test_a_number_of_thousands_of_digits_is_told_without_advice_for_programs(write, tmp_path):
    path = write("jsonl", [{"text": "a"}, b'{"text": "b", "n": %s}' % (b"1" * 5000)])
    report, _ = packed(path, tmp_path)
    (note,) = report.skipped
    assert "a number of thousands of digits" in note.reason
