"""Anyone's tars as a shard set: pytest tests/shards/make/test_adopt.py"""

import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
import zlib
from dataclasses import replace
from functools import partial

import fsspec
import pytest
import webdataset

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import read_index, read_manifest
from sslpipe.shards.index import index_path
from sslpipe.shards.make.adopt import adopt
from sslpipe.shards.manifest import write_manifest
from sslpipe.shards.scan import Rules
from sslpipe.shards.tar_headers import member_key

RULES = Rules(ImageCodec())
LONG = "folder." + "x" * 120 + "/"


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make(path, members, kind=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            add(tar, name, data)
    return path


@pytest.fixture
def members(picture):
    """Six samples: labels in .cls, in .json and none, in both orders, nested and long names."""
    labels = [[("cls", b"3")], [("json", b'{"label": 4}')], [("txt", b"a cat")]]
    found = [("__info__", b"{}"), ("__meta__/a.jpg", b"no sample")]
    for number in range(6):
        key = ("a", "deep/er.dir/ü", LONG + "y")[number % 3] + str(number)
        parts = [("jpg", picture(number, size=(40, 30 + number))), *labels[number % 3]]
        found += [(f"{key}.{ext}", data) for ext, data in parts[:: 1 if number % 2 else -1]]
    return found


def read(manifest):
    """(key, payload, label) by the indexes alone."""
    for shard in manifest.shards:
        data = (manifest.root / shard.file).read_bytes()
        index = read_index(manifest.root / shard.file)
        for row in range(len(index)):
            for place in index.members_of(row).values():
                assert place.crc == zlib.crc32(data[place.offset :][: place.size])
            place = index.payload(row)
            payload = data[place.offset :][: place.size]
            yield member_key(data[place.start : place.offset]), payload, index.sample(row).label


def check(adopted, theirs):
    """The same keys and bytes in the same order as webdataset."""
    ours = list(read(adopted.manifest))
    assert [(key, data) for key, data, _ in ours] == [(s["__key__"], s["jpg"]) for s in theirs]
    return [label for _, _, label in ours]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_python(tmp_path, members, kind, tars_by_webdataset):
    path = make(tmp_path / "x.tar", members, kind)
    adopted = adopt([str(path)], rules=RULES)
    assert adopted.problems == ()
    assert check(adopted, tars_by_webdataset([path])) == [3, 4, -1] * 2
    assert read_manifest(tmp_path) == adopted.manifest
    index = read_index(path)
    assert index.samples["extent"][:, 0].tolist() == [30, 31, 32, 33, 34, 35]
    beside = [{"cls"}, {"json"}, {"txt"}] * 2
    assert [set(index.members_of(row)) - {"jpg"} for row in range(6)] == beside


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_tars_of_gnu_tar(tmp_path, picture, form, tars_by_webdataset):
    folder = tmp_path / "in" / "sub.dir"
    folder.mkdir(parents=True)
    long = "" if form == "v7" else "n" * 90
    for number in range(3):
        (folder / f"{number}{long}.jpg").write_bytes(picture(number))
        (folder / f"{number}{long}.cls").write_text(str(number))
    path = tmp_path / "tars" / "x.tar"
    path.parent.mkdir()
    command = ["tar", f"--format={form}", "--sort=name", "-cf", path, "-C", tmp_path / "in", "."]
    subprocess.run(command, check=True)
    adopted = adopt([str(path)], rules=RULES)
    assert adopted.problems == ()
    assert check(adopted, tars_by_webdataset([path])) == [0, 1, 2]


def test_tars_of_webdataset_by_brace_glob_and_folder(tmp_path, picture, tars_by_webdataset):
    with webdataset.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(5):
            sample = {"jpg": picture(number), "json": {"label": number}}
            writer.write({"__key__": f"{number:05d}", **sample})
    theirs = tars_by_webdataset(sorted(tmp_path.glob("*.tar")))
    for url in ("w-{000..002}.tar", "w-*.tar", ""):
        adopted = adopt([str(tmp_path / url)], rules=RULES, rebuild=True)
        assert check(adopted, theirs) == [0, 1, 2, 3, 4]
        assert [shard.samples for shard in adopted.manifest.shards] == [2, 2, 1]


def test_tars_of_img2dataset(tmp_path, picture, tars_by_webdataset):
    members = []
    for number in range(3):
        meta = json.dumps({"key": f"{number:09d}", "status": "success", "width": 40})
        parts = [("jpg", picture(number)), ("txt", b"caption"), ("json", meta.encode())]
        members += [(f"{number:09d}.{ext}", data) for ext, data in parts]
    path = make(tmp_path / "00000.tar", members)
    adopted = adopt([str(path)], rules=RULES)
    assert adopted.problems == ()
    assert check(adopted, tars_by_webdataset([path])) == [-1] * 3
    again = adopt([str(path)], rules=Rules(ImageCodec(), label_key="width"), rebuild=True)
    assert [label for _, _, label in read(again.manifest)] == [40] * 3


def test_everything_that_is_wrong_is_reported(tmp_path, picture):
    jpg = picture(0)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in [
            ("good.jpg", jpg), ("word.jpg", jpg), ("word.cls", b"cat"), ("empty.jpg", b""),
            ("bad.jpg", b"no picture"), ("torn.jpg", jpg), ("other.jpg", jpg), ("torn.cls", b"1"),
            ("json.jpg", jpg), ("json.json", b"{"), ("two.jpg", jpg), ("two.png", jpg),
            ("good.cls", b"5"), ("none.txt", b""),
        ]:  # fmt: skip
            add(tar, name, data)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "good.jpg"
        tar.addfile(link)
    with path.open("ab") as file:
        file.write(make(tmp_path / "more" / "y.tar", [("more.jpg", jpg)]).read_bytes())
    adopted = adopt([str(path)], rules=RULES)
    apart = "its members do not stand together; webdataset makes two samples of them"
    expected = [
        ("", "1 samples have several payloads, 'two' for one (jpg, png)"),
        ("", "holds more after its end mark"),
        ("bad", "is "),
        ("empty", "its payload is empty"),
        ("good", apart),
        ("json", "its .json does not parse"),
        ("link", "member 'jpg' is a link"),
        ("none", "no payload among its members txt"),
        ("torn", apart),
        ("word", "label 'cat' is no class id (0 to 2,147,483,647; -1 or nothing: none)"),
    ]
    told = sorted((problem.key, problem.what) for problem in adopted.problems)
    assert [key for key, _ in told] == [key for key, _ in expected]
    assert all(what.startswith(start) for (_, what), (_, start) in zip(told, expected, strict=True))
    keys = [(key, label) for key, _, label in read(adopted.manifest)]
    assert keys == [
        ("good", 5),
        ("word", -1),
        ("torn", 1),
        ("other", -1),
        ("json", -1),
        ("two", -1),
    ]
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows] == [problem.what for problem in adopted.problems]


def test_names_in_latin_1_stay_apart(tmp_path, picture):
    names = ["caf\udce9", "caf\udce8", "café"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            add(tar, f"{name}.jpg", picture(number))
    adopted = adopt([str(path)], rules=RULES)
    assert adopted.problems == ()
    assert [key for key, *_ in read(adopted.manifest)] == ["caf%E9", "caf%E8", "café"]


def test_a_payload_can_be_named(tmp_path, picture):
    sample = [("a.depth.png", picture(0, "PNG")), ("a.jpg", picture(1))]
    path = make(tmp_path / "x.tar", sample)
    first = adopt([str(path)], rules=RULES)
    assert "(depth.png, jpg)" in first.problems[0].what
    named = adopt([str(path)], rules=Rules(ImageCodec(), only="jpg"), rebuild=True)
    assert named.problems == ()
    assert [data for _, data, _ in read(named.manifest)] == [picture(1)]


def test_keys_of_several_tars_are_compared(tmp_path, picture):
    for name, keys in (("a", "12"), ("b", "345"), ("c", "236")):
        make(tmp_path / f"{name}.tar", [(f"{key}.jpg", picture(0)) for key in keys])
    (problem,) = adopt([str(tmp_path)], rules=RULES).problems
    assert problem.shard == "c.tar"
    assert problem.what.startswith("2 of its 3 keys")


def test_a_damaged_tar_does_not_stop_the_others(tmp_path, picture):
    good = make(tmp_path / "a.tar", [(f"{i}.jpg", picture(i)) for i in range(4)])
    (tmp_path / "b.tar").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "c.tar").write_bytes(b"\x1f\x8b" + bytes(1000))
    make(tmp_path / "d.tar", [("x.txt", b"")])
    adopted = adopt([str(tmp_path)], rules=RULES)
    assert [shard.file for shard in adopted.manifest.shards] == ["a.tar"]
    what = {problem.shard: problem.what for problem in adopted.problems if not problem.key}
    assert "cut" in what["b.tar"]
    assert "compressed with gzip; unpack it" in what["c.tar"]
    assert "holds no sample" in what["d.tar"]
    (tmp_path / "a.tar").unlink()
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ShardError, match="no tar holds a sample that can be used"):
        adopt([str(tmp_path)], rules=RULES)


def test_an_index_as_new_as_its_tar_is_kept_with_its_problems(tmp_path, picture):
    for name in "ab":
        make(tmp_path / f"{name}.tar", [(f"{name}.jpg", picture(0)), (f"{name}.cls", b"?")])
    first = adopt([str(tmp_path)], rules=RULES)
    (tmp_path / "b.tar").touch()
    os.utime(index_path(tmp_path / "b.tar"), (0, 0))
    events = []
    again = adopt([str(tmp_path)], rules=RULES, progress=events.append)
    assert [(event.kept, event.total) for event in events] == [(True, 2), (False, 2)]
    assert again == first
    assert len(again.problems) == 2
    make(tmp_path / "a.tar", [("a.jpg", picture(0)), ("b/c.jpg", picture(1))])
    events.clear()
    changed = adopt([str(tmp_path)], rules=RULES, progress=events.append).manifest
    assert [event.kept for event in events] == [False, True]
    assert changed.fingerprint != first.manifest.fingerprint


def test_what_a_packed_set_knows_is_kept(packed, tmp_path, picture):
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    old = read_manifest(tmp_path)
    first, second = (shard.file for shard in old.shards[:2])
    old = replace(old, exclude={first: (0,), second: (1,)})
    write_manifest(old)
    adopt([str(tmp_path)], rules=RULES, rebuild=True)
    assert read_manifest(tmp_path) == old
    make(tmp_path / first, [("new.jpg", picture(0))])
    adopt([str(tmp_path)], rules=RULES)
    changed = read_manifest(tmp_path)
    assert changed.exclude == {second: (1,)}
    assert changed.classes == old.classes
    with pytest.raises(ShardError, match="which is not among the tars to index"):
        adopt([str(tmp_path / old.shards[0].file)], rules=RULES)


def test_distant_tars_are_streamed_and_keep_their_urls(tmp_path, members):
    store = fsspec.filesystem("memory")
    path = make(tmp_path / "x.tar", members)
    for name in ("a/0.tar", "b/0.tar"):
        store.pipe(f"/set/{name}", path.read_bytes())
    adopted = adopt(["memory://set/{a,b}/*.tar"], out=tmp_path / "out", rules=RULES)
    assert [(shard.file, shard.url) for shard in adopted.manifest.shards] == [
        ("a__0.tar", "memory:///set/a/0.tar"),
        ("b__0.tar", "memory:///set/b/0.tar"),
    ]
    local = adopt([str(path)], rules=RULES)
    expected = index_path(path).read_bytes()
    assert index_path(tmp_path / "out" / "b__0.tar").read_bytes() == expected
    assert adopted.manifest.shards[0].sha256 == local.manifest.shards[0].sha256
    store.rm("/set", recursive=True)
    with pytest.raises(ShardError, match=r"the first: memory:.*cannot be read \(No such file"):
        adopt(["memory://set/a/0.tar"], out=tmp_path / "none", rules=RULES)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_web_server_without_ranges_will_do(tmp_path, members):
    path = make(tmp_path / "site" / "x.tar", members)
    serve = partial(Quiet, directory=path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x.tar"
        adopted = adopt([url], out=tmp_path / "out", rules=RULES)
        server.shutdown()
    adopt([str(path)], rules=RULES)
    assert adopted.manifest.shards[0].url == url
    index = index_path(tmp_path / "out" / "x.tar").read_bytes()
    assert index == index_path(path).read_bytes()


def test_local_tars_of_several_folders_need_a_folder_for_the_indexes(tmp_path, picture):
    for name in ("a/0", "b/0", "1"):
        make(tmp_path / f"{name}.tar", [(f"{name}.jpg", picture(0))])
    urls = [str(tmp_path / "**" / "*.tar")]
    with pytest.raises(ShardError, match="name a folder for indexes and manifest with --out"):
        adopt(urls, rules=RULES)
    adopted = adopt(urls, out=tmp_path, rules=RULES)
    assert {shard.file: shard.url for shard in adopted.manifest.shards} == {
        "1.tar": None,
        "a__0.tar": str(tmp_path / "a" / "0.tar"),
        "b__0.tar": str(tmp_path / "b" / "0.tar"),
    }
