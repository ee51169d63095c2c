"""What goes into which shard, and how it is written: pytest tests/shards/make/test_plan.py"""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from webdataset import TarWriter

from sslpipe.errors import SampleError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, Rules, estimate, index_tar, open_threads, pack, read_index
from sslpipe.shards.make import pack as making
from sslpipe.shards.make.plan import cut_into_shards, keyed_sample, tar_bytes
from sslpipe.shards.make.source import InputFile, Origin
from sslpipe.shards.make.work import Sized
from sslpipe.shards.make.writer import ShardWriter

PLAIN = PackSettings(codec=ImageCodec(), name="p", shard_bytes=100_000)


def sources(sizes):
    return [
        InputFile(Origin(f"/in/{n}.jpg"), f"{n}.jpg", str(n), "jpg", n, -1, size)
        for n, size in enumerate(sizes)
    ]


def test_known_sizes_fill_shards_up_to_the_limit():
    some = sources(np.random.default_rng(0).integers(1, 60_000, 200).tolist())
    groups = cut_into_shards(some, PLAIN, 0)
    assert [s for group in groups for s in group] == some
    sums = [sum(tar_bytes(s, PLAIN, 0) for s in group) + 1024 for group in groups]
    assert all(
        total <= 100_000 or len(group) == 1 for total, group in zip(sums, groups, strict=True)
    )
    # greedy: the first of the next shard would not have found room
    for total, following in zip(sums, groups[1:], strict=False):
        assert total + tar_bytes(following[0], PLAIN, 0) > 100_000 - tarfile.RECORDSIZE


def test_unknown_sizes_are_cut_by_the_mean():
    one = tar_bytes(sources([0])[0], PLAIN, 7_000)
    groups = cut_into_shards(sources([0] * 100), PLAIN, 7_000)
    assert {len(group) for group in groups[:-1]} == {(9 * tarfile.RECORDSIZE - 1024) // one}
    resized = cut_into_shards(sources([10**9] * 100), replace(PLAIN, resize=64), 7_000)
    assert [len(group) for group in resized] == [len(group) for group in groups]


def test_a_count_takes_the_place_of_bytes():
    groups = cut_into_shards(sources([10**9] * 10), replace(PLAIN, shard_samples=4), 0)
    assert [len(group) for group in groups] == [4, 4, 2]
    assert cut_into_shards([], PLAIN, 0) == []


def test_only_what_is_unknown_is_sampled():
    mixed = sources([5, 0, 5, 0])
    assert [s.uid for s in keyed_sample(mixed, PLAIN)] == [1, 3]
    assert keyed_sample(sources([5] * 9), PLAIN) == []
    assert len(keyed_sample(sources([5] * 100), replace(PLAIN, resize=64))) == 64
    assert keyed_sample(sources([0] * 9), replace(PLAIN, resize=64, shard_samples=2)) == []


def test_resized_shards_come_out_at_about_their_size(tmp_path, codec, picture):
    (tmp_path / "in" / "class").mkdir(parents=True)
    for number in range(120):
        path = tmp_path / "in" / "class" / f"{number}.png"
        path.write_bytes(picture(number, "PNG", (64, 48)))
    manifest = pack(
        tmp_path / "in", tmp_path / "out", PackSettings(codec=codec, resize=32, shard_bytes=60_000)
    ).manifest
    assert len(manifest.shards) > 3
    for shard in manifest.shards[:-1]:
        assert 45_000 < shard.bytes < 75_000


def test_extras_and_names_stay_within_the_limit(tmp_path, codec, picture):
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(picture(number))
        (tmp_path / "in" / f"{number}.txt").write_text("a caption " * 300)
    report = pack(
        tmp_path / "in",
        tmp_path / "out",
        PackSettings(codec=codec, shard_bytes=81_920, keep_names=True),
    )
    with tarfile.open(report.manifest.tar(report.manifest.shards[0])) as tar:
        first = tar.getmembers()[:3]
        assert [m.name.partition(".")[2] for m in first] == ["jpg", "name.json", "txt"]
        key = first[0].name.partition(".")[0]
        assert tar.extractfile(first[1]).read() == f'{{"file": "{key}.jpg"}}'.encode()
        assert tar.extractfile(first[2]).read() == b"a caption " * 300


def test_the_writer_writes_what_webdataset_writes_and_indexes_what_scanning_finds(
    tmp_path, picture, codec
):
    names = ["a", "é" * 40, "d/" * 60 + "long", "x" * 99, "z" * 200]
    theirs = io.BytesIO()
    plain = {"user": "sslpipe", "group": "sslpipe", "mode": 0o444, "mtime": 0}
    with (
        (tmp_path / "a.tar").open("wb") as file,
        TarWriter(theirs, encoder=False, **plain) as writer,
    ):
        ours = ShardWriter(file)
        for number, name in enumerate(names):
            ext, data = (
                ("jpg", picture(number)) if number % 2 else ("webp", picture(number, "WEBP"))
            )
            extras = {"txt": b"x" * 512 * number}
            ours.add(
                name,
                ext,
                data,
                label=number,
                extent=(30, 40),
                flags=codec.flags(data),
                extras=extras,
            )
            members = {"__key__": name, ext: data, "cls": str(number).encode(), **extras}
            writer.write(members)
        index = ours.finish()
    assert (tmp_path / "a.tar").read_bytes() == theirs.getvalue()
    scanned = index_tar(tmp_path / "a.tar", Rules(codec))
    assert (index.samples == scanned.samples).all()
    assert (index.members == scanned.members).all()
    assert (index.extensions, index.tar_bytes, index.tar_sha256) == (
        scanned.extensions,
        scanned.tar_bytes,
        scanned.tar_sha256,
    )


def test_header_checks_see_sizes_but_not_damage(folder, tmp_path, codec, picture):
    cut_short = picture(50, "JPEG", (64, 48))
    (folder / "cut.jpg").write_bytes(cut_short[: len(cut_short) // 2])
    (folder / "text.jpg").write_bytes(b"I am no image")
    full = pack(folder, tmp_path / "a", PackSettings(codec=codec))
    quick = pack(folder, tmp_path / "b", PackSettings(codec=codec, check="header"))
    assert {note.file for note in full.failures} == {"cut.jpg", "text.jpg"}
    assert [note.file for note in quick.failures] == ["text.jpg"]
    (shard,) = quick.manifest.shards
    extents = read_index(quick.manifest.tar(shard)).samples["extent"].tolist()
    assert sorted(extents)[-2:] == [[30, 40, 0, 0], [48, 64, 0, 0]]


def test_payloads_are_named_by_their_content(folder, tmp_path, codec, picture, by_index):
    (folder / "lie.jpg").write_bytes(picture(9, "PNG"))
    found = {
        key: ext
        for key, ext, *_ in by_index(
            pack(folder, tmp_path / "o", PackSettings(codec=codec)).manifest
        )
    }
    assert (found["lie"], found["cat/0"]) == ("png", "jpg")


def test_an_estimate_writes_nothing_and_comes_true(folder, tmp_path, codec):
    before = sorted(tmp_path.rglob("*"))
    same = {"codec": codec, "shard_bytes": 20_000}
    said = estimate(folder, tmp_path / "out", PackSettings(**same))
    assert sorted(tmp_path.rglob("*")) == before
    made = pack(folder, tmp_path / "out", PackSettings(**same)).manifest
    assert (said.samples, said.shards, said.sampled) == (20, len(made.shards), 20)
    assert said.bytes_out == pytest.approx(sum(shard.bytes for shard in made.shards), rel=0.25)
    assert said.seconds > 0
    resized = estimate(folder, tmp_path / "out", PackSettings(resize=15, **same))
    small = pack(folder, tmp_path / "small", PackSettings(resize=15, **same)).manifest
    assert resized.shards == len(small.shards)
    halved = estimate(folder, tmp_path / "out", PackSettings(shard_samples=2, codec=codec))
    assert halved.shards == 10


def test_an_estimate_leaves_out_what_is_done_once(folder, tmp_path, monkeypatch):
    """The first sample imports decoders and opens archives: its time is not counted."""
    clock = [0.0]

    def sized(job):
        clock[0] += len(job.sources) + (100 if not clock[0] else 0)
        return Sized((1,) * len(job.sources))

    monkeypatch.setattr(making, "size_payloads", sized)
    monkeypatch.setattr(making.time, "perf_counter", lambda: clock[0])
    said = estimate(folder, tmp_path / "out", PLAIN, workers=1)
    assert said.seconds == said.samples == 20
    assert said.summary["would pack"]["time"] == "about 20 s"
    assert replace(said, seconds=0.2).summary["would pack"]["time"] == "about 1 s"
    assert replace(said, seconds=83.2).summary["would pack"]["time"] == "about 1:23 min"


def test_a_shard_without_any_good_file_is_left_out(folder, tmp_path, codec):
    class Picky(ImageCodec):
        def inspect(self, data):
            if not data.startswith(b"\x89PNG"):
                raise SampleError("is no PNG")
            return super().inspect(data)

    with open_threads(1) as pool:
        report = pack(
            folder, tmp_path / "out", PackSettings(codec=Picky(), shard_samples=1), pool=pool
        )
    assert report.manifest.samples == len(report.manifest.shards) == 5
    assert len(report.failures) == 15
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(files) == 5 * 2 + 2
    assert report.summary["formats"] == {"png": "5"}


def test_the_summary_counts_everything(folder, tmp_path, codec, picture):
    (folder / "large.jpg").write_bytes(picture(70, size=(300, 260)))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.md").write_text("hello")
    (folder / "again.jpg").write_bytes(picture(0))
    report = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, dedupe="exact", shard_samples=3)
    )
    tables = report.summary
    counted = dict(list(tables["packed"].items())[:6])
    assert counted == {
        "samples": "21", "shards": "8", "classes": "2", "failed": "1", "skipped": "1",
        "duplicates": "1",
    }  # fmt: skip
    assert tables["packed"]["labels"] == "names, numbered in the order of their text"
    assert tables["formats"] == {"png": "5", "jpg": "8", "webp": "4", "bmp": "4"}
    assert tables["shorter side, px"] == {"under 64": "20", "256 to 383": "1"}
    assert tables["failures"] == {"is empty": "1"}
    assert report.bytes_in == sum(
        path.stat().st_size
        for path in folder.rglob("*.*")
        if path.name not in ("notes.md", "0.jpg")
    )
