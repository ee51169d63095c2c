import numpy as np
import pytest

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, pack, read_index, read_manifest
from sslpipe.shards.labels_file import LabelRow, label_table, read_labels, write_labels

from ..conftest import write_images

A, B = sample_id("a"), sample_id("b")


def test_what_is_written_is_read(tmp_path):
    rows = [
        LabelRow(sample_id('x, "y"'), 'x, "y"', "größe, m", 0.25),
        LabelRow(B, "", "no key", 1.0),
        LabelRow(A, "a", "größe, m", 0.5),
    ]
    table = label_table("somewhere", rows)
    write_labels(tmp_path / "l.csv", table)
    found = read_labels(tmp_path / "l.csv")
    assert found.rows == table.rows
    assert found.classes == ("größe, m", "no key")
    assert found.uids.tolist() == sorted(row.uid for row in rows)
    assert [p.name for p in tmp_path.iterdir()] == ["l.csv"]


def test_the_fingerprint_is_of_samples_and_labels_alone():
    rows = [LabelRow(A, "a", "x", 1.0), LabelRow(B, "b", "y", 1.0)]
    same = [LabelRow(B, "", "y", 0.1), LabelRow(A, "", "x", 0.2)]
    other = [rows[0], LabelRow(B, "b", "x", 1.0)]
    one, two, three = (label_table("f", r).fingerprint for r in (rows, same, other))
    assert one == two != three


def test_a_hand_written_file_needs_keys_and_labels_only(tmp_path):
    (tmp_path / "l.csv").write_text("\ufeffkey, label\r\na, owl\r\nb, wren\r\n")
    rows = read_labels(tmp_path / "l.csv").rows
    assert sorted(rows, key=lambda row: row.key) == [
        LabelRow(A, "a", "owl", 1.0),
        LabelRow(B, "b", "wren", 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the header is ''; write uid,key,label,confidence"),
        ("uid,class\n1,x\n", "unknown column 'class'"),
        ("key,confidence\na,1\n", ":1: the header is 'key,confidence'"),
        ("label\nowl\n", ":1: the header is 'label'"),
        ("key,label\n", "labels no sample"),
        ("key,label\na\n", ":2: has other fields than the header"),
        ("key,label\na,owl,1\n", ":2: has other fields than the header"),
        ("key,label\na,\n", ":2: has no label"),
        ("key,label\na,owl\n,owl\n", ":3: uid = '' is no sample's number"),
        ("uid,label\n1.5,owl\n", ":2: uid = '1.5' is no sample's number"),
        (f"uid,label\n{2**63},owl\n", ":2: uid = '9223372036854775808' is no sample's number"),
        (f"uid,key,label\n{A},b,owl\n", f":2: uid = {A} is not that of 'b'"),
        ("key,label,confidence\na,owl,98%\n", ":2: confidence = '98%': give a number"),
        ("key,label,confidence\na,owl,nan\n", ":2: confidence = 'nan': give a number"),
        ("key,label\na,owl\na,wren\n", "a has two rows"),
        ('key,label\na,"owl\n', "is no CSV"),
        (b"key,label\na,\xff\n", "is no text (byte 12 is not UTF-8)"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "l.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ShardError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ShardError, match=r"none\.csv: cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_names_are_joined_and_others_are_told():
    table = label_table("f.csv", [LabelRow(A, "a", "owl", 1.0)])
    numbers, classes = table.numbered(("crow", "owl"))
    assert (numbers.tolist(), classes) == ([1], ("crow", "owl"))
    assert table.numbered(()) == (np.array([0]), ("owl",))
    with pytest.raises(ShardError, match=r"a is labelled 'owl', which is no class .* 'owls'"):
        table.numbered(("crow", "owls"))


def settings(**changes):
    return PackSettings(codec=ImageCodec(), name="x", **changes)


def packed_labels(folder):
    """{uid: name of its class, or None}."""
    manifest = read_manifest(folder)
    names = [*manifest.classes, None]
    indexes = [read_index(manifest.root / shard.file) for shard in manifest.shards]
    return {int(row["uid"]): names[row["label"]] for index in indexes for row in index.samples}


def test_pack_takes_labels_by_key(tmp_path):
    write_images(tmp_path / "images", 9)
    keys = [f"class{i % 3}/{i:03d}" for i in range(9)]
    text = "key,label\n" + "".join(f"{key},new\n" for key in keys[:2])
    (tmp_path / "l.csv").write_text(text)
    report = pack(tmp_path / "images", tmp_path / "out", settings(labels=tmp_path / "l.csv"))
    assert report.manifest.classes == ("class0", "class1", "class2", "new")
    assert "2 samples by" in report.labels
    expected = {sample_id(key): key.split("/")[0] for key in keys}
    assert packed_labels(tmp_path / "out") == {
        **expected,
        sample_id(keys[0]): "new",
        sample_id(keys[1]): "new",
    }


def test_pack_gives_labels_to_what_has_none(tmp_path):
    write_images(tmp_path / "images", 4, classes=1)
    folder = tmp_path / "images" / "class0"
    (tmp_path / "l.csv").write_text("key,label\n000,b\n002,a\n")
    pack(folder, tmp_path / "out", settings(labels=tmp_path / "l.csv"))
    assert read_manifest(tmp_path / "out").classes == ("a", "b")
    labels = packed_labels(tmp_path / "out")
    assert [labels[sample_id(f"00{i}")] for i in range(4)] == ["b", None, "a", None]
    (tmp_path / "wrong.csv").write_text("key,label\n009,b\n")
    with pytest.raises(ShardError, match=r"wrong\.csv: 009 is no sample of the inputs"):
        pack(folder, tmp_path / "no", settings(labels=tmp_path / "wrong.csv"))
    assert not (tmp_path / "no").exists()
