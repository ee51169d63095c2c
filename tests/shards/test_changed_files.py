"""Records, indexes, manifests and tables that somebody changed: one line, never a trace.

Each case was found by tools/fuzz.py.
"""

import io
import json
import re
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import (
    PackSettings,
    Rules,
    exclude_rows,
    index_tar,
    open_manifest,
    pack,
    read_index,
    read_manifest,
    verify,
    write_index,
)
from sslpipe.shards.index import MEMBER, file_sha256, index_path
from sslpipe.shards.make.adopt import adopt
from sslpipe.shards.make.journal import FOLDER, Journal
from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.read.store import open_store
from sslpipe.stream.quarantine import Quarantine

from ..conftest import write_images

DEEP = "[" * 100_000


@pytest.fixture
def copied(packed, tmp_path):
    """A set of our own."""
    return shutil.copytree(packed, tmp_path / "set")


def agree(folder, tar):
    """Let the manifest know a changed index."""
    text = (folder / "manifest.json").read_text()
    shard = next(s for s in json.loads(text)["shards"] if s["file"] == tar.name)
    new = text.replace(shard["index_sha256"], file_sha256(index_path(tar)))
    (folder / "manifest.json").write_text(new)


@pytest.mark.parametrize(
    ("field", "value"),
    [("offset", 2**63), ("offset", 2**64 - 1), ("offset", 10**6), ("size", 2**32 - 1),
     ("blocks", 60_000), ("offset", 0)],
)  # fmt: skip
def test_an_index_whose_members_lie_outside_its_tar_is_refused(copied, field, value):
    tar = min(copied.glob("*.tar"))
    index = read_index(tar)
    members = index.members.copy()
    members[field][3] = value
    write_index(tar, replace(index, members=members))
    agree(copied, tar)
    with pytest.raises(ShardError, match="names members that it does not have"):
        read_index(tar)
    with pytest.raises(ShardError, match="names members that it does not have"):
        open_store(open_manifest(copied)).open(0)


def test_the_last_byte_of_a_tar_may_be_a_member_s(copied):
    tar = min(copied.glob("*.tar"))
    index = read_index(tar)
    end = int((index.members["offset"] + index.members["size"].astype(np.uint64)).max())
    write_index(tar, replace(index, tar_bytes=end))
    assert read_index(tar).members.dtype == MEMBER


def test_an_index_that_claims_a_longer_tar_than_the_manifest_is_of_another_tar(copied):
    tar = min(copied.glob("*.tar"))
    write_index(tar, replace(read_index(tar), tar_bytes=2**40))
    agree(copied, tar)
    with pytest.raises(ShardError, match="is the index of another tar"):
        open_store(open_manifest(copied)).open(0)
    found = verify(read_manifest(copied), codec=ImageCodec())
    assert "is the index of another tar" in found[0].what


@pytest.mark.parametrize("name", ["x" * 300 + ".tar", "\ud800.tar", "é" * 130 + ".tar"])
def test_a_manifest_of_file_names_that_no_disk_takes_is_refused(copied, name):
    document = json.loads((copied / "manifest.json").read_text())
    document["shards"][0]["file"] = name
    (copied / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ShardError, match="is no plain file name"):
        read_manifest(copied)


def test_json_that_is_nested_without_end_is_no_json(copied, tmp_path):
    (copied / "manifest.json").write_text(DEEP)
    with pytest.raises(ShardError, match=r"is not JSON \(it is nested too deeply"):
        read_manifest(copied)


def test_a_label_that_is_nested_without_end_is_told(tmp_path, packed):
    write_images(tmp_path / "photos", 1)
    (photo,) = (tmp_path / "photos").rglob("*.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(photo, "a.jpg")
        info = tarfile.TarInfo("a.json")
        info.size = len(DEEP)
        tar.addfile(info, io.BytesIO(DEEP.encode()))
    told = []
    index = index_tar(tmp_path / "x.tar", Rules(ImageCodec()), lambda *words: told.append(words))
    assert (len(index), index.sample(0).label) == (1, -1)
    assert told == [("a", "its .json does not parse (it is nested too deeply); it has no label")]


LOG = {"uid": 1, "key": "k", "reason": "a\u2028b", "epoch": 0, "step": 0}


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b'{"manifest": ', "Expecting value"), (b"\xff", "codec can't decode"), (b"[1]", "no object"),
     (b"{}", "manifest|missing"),
     (b'{"manifest": "F", "shard": [], "row": 0}', "unhashable|missing"),
     (b'{"manifest": "F", "shard": "S", "row": "1"}', "not supported|missing"),
     (DEEP.encode(), "nested too deeply")],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_changed_line_of_a_quarantine_log_is_named(copied, tmp_path, line, reason):
    manifest = read_manifest(copied)
    log = tmp_path / "quarantine.jsonl"
    good = {"manifest": manifest.fingerprint, "shard": manifest.shards[0].file, "row": 1, **LOG}
    text = json.dumps(good, ensure_ascii=False).encode()  # as the run writes it
    line = line.replace(b'"F"', json.dumps(manifest.fingerprint).encode())
    log.write_bytes(text + b"\n" + line + b"\n" + text + b"\n")
    for work in (
        lambda: exclude_rows(manifest, logs=[log]),
        lambda: Quarantine(log, max_fraction=0.1),
    ):
        with pytest.raises(
            ShardError, match=rf"{re.escape(str(log))}:2: is no line of .*({reason})"
        ):
            work()
    log.write_bytes(text + b"\n")
    Quarantine(log, max_fraction=0.1)
    assert exclude_rows(manifest, logs=[log]).exclude == {manifest.shards[0].file: (1,)}


def test_a_changed_record_of_a_packing_is_made_again(tmp_path, monkeypatch):
    """A record that is JSON, but says something else, would end in other bytes or in a trace."""
    write_images(tmp_path / "photos", 9)
    settings = PackSettings(codec=ImageCodec(), name="set", shard_samples=3, resize=20)
    whole = pack(tmp_path / "photos", tmp_path / "whole", settings).manifest.fingerprint
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda journal: None)
        pack(tmp_path / "photos", out, settings)
    (out / "manifest.json").unlink()
    for path in sorted((out / FOLDER).glob("*-*.json")):
        first = path.read_bytes()
        path.write_bytes(re.sub(rb"[0-9a-f](?=[^0-9a-f]*\n)", b"7", first, count=1))
    for change in (b'"samples": 2', b'"sampels": 3'):
        path = out / FOLDER / "shard-000000.json"
        path.write_bytes(path.read_bytes().replace(b'"samples": 3', change))
    assert pack(tmp_path / "photos", out, settings).manifest.fingerprint == whole
    assert not (out / FOLDER).exists()


def test_a_changed_plan_of_a_packing_is_another_plan(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 3)
    settings = PackSettings(codec=ImageCodec(), name="set")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda journal: None)
        pack(tmp_path / "photos", tmp_path / "out", settings)
    (tmp_path / "out/manifest.json").unlink()
    for content in (b"[]", b"{", b"\xff"):
        (tmp_path / "out" / FOLDER / "plan.json").write_bytes(content)
        with pytest.raises(ShardError, match="holds an unfinished packing of other inputs"):
            pack(tmp_path / "photos", tmp_path / "out", settings)
        pack(tmp_path / "photos", tmp_path / "new", settings, overwrite=True)


def test_a_changed_report_of_an_indexing_is_named(copied):
    tars = [str(path) for path in sorted(copied.glob("*.tar"))]
    for line in ("{", "[]", '{"kind": 3}', '{"kind": "index", "file": "a"}'):
        (copied / "report.jsonl").write_text(line + "\n")
        with pytest.raises(ShardError, match=r"report\.jsonl:1: is no line of a report"):
            adopt(tars, rules=Rules(ImageCodec()))


@pytest.mark.parametrize("at", [0.02, 0.1, 0.2, 0.3])
def test_a_damaged_page_of_a_parquet_file_is_one_line(tmp_path, at):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_images(tmp_path / "photos", 3)
    paths = [str(path) for path in sorted((tmp_path / "photos").rglob("*.jpg"))] * 200
    table = pyarrow.Table.from_pydict({"path": paths, "caption": [f"w {n}" for n in range(600)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    start = int(len(data) * at)
    data[start : start + 60] = b"\xff" * 60
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(ShardError, match=r"t\.parquet: is a damaged Parquet file") as caught:
        list_inputs([tmp_path / "t.parquet"], out=tmp_path / "o", extensions={"jpg"})
    assert "\n" not in str(caught.value)
