"""Our indexes in the formats of others, each read by the real library.

pytest tests/shards/make/test_exports.py; DALI and Energon are skipped where they are not installed.
"""

import gc
import io
import struct
import tarfile
import warnings
from dataclasses import replace

import pytest
import wids

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import read_manifest
from sslpipe.shards.make.adopt import adopt
from sslpipe.shards.make.exports import check_kinds, export
from sslpipe.shards.scan import Rules

RULES = Rules(ImageCodec())


def make(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def manifest(tmp_path, picture):
    """Two tars of four samples of three members, and what no reader should see."""
    for name in "ab":
        members = [("__meta__/x.jpg", b"meta"), ("plain", b"no extension")]
        for number in range(4):
            for ext, data in (("cls", b"%d" % number), ("jpg", picture(number)), ("txt", b"hi")):
                members.append((f"{name}/{number}.{ext}", data))
        make(tmp_path / f"{name}.x.tar", members)
    return adopt([str(tmp_path)], rules=RULES).manifest


def by_webdataset(tars_by_webdataset, manifest):
    return tars_by_webdataset([manifest.root / shard.file for shard in manifest.shards])


def test_wids_reads_every_sample(manifest, tars_by_webdataset, tmp_path):
    for name in "ab":  # without what wids takes for a sample: it is refused, see below
        path = manifest.root / f"{name}.x.tar"
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar if m.name[:2] != "__"]
        make(path, members)
    manifest = adopt([str(manifest.root)], rules=RULES, rebuild=True).manifest
    theirs = by_webdataset(tars_by_webdataset, manifest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ResourceWarnings of its own
        data = wids.ShardListDataset(
            str(export(manifest, "wids")), cache_dir=tmp_path / "cache", transformations=[]
        )
        assert len(data) == len(theirs) == 8
        for i, sample in enumerate(theirs):
            assert data[i]["__key__"] == sample["__key__"]
            assert data[i][".jpg"].read() == sample["jpg"]
        del data


def test_dali_reads_every_member(manifest, tars_by_webdataset):
    fn = pytest.importorskip("nvidia.dali.fn", reason="needs nvidia-dali")
    from nvidia.dali import pipeline_def

    root = export(manifest, "dali")
    paths = [str(root / f"{name}.x.tar") for name in "ab"]

    @pipeline_def(batch_size=8, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph():
        indexes = [path.replace(".tar", ".idx") for path in paths]
        parts = fn.readers.webdataset(
            paths=paths,
            index_paths=indexes,
            ext=["jpg", "cls", "txt"],
            missing_component_behavior="error",
        )
        return tuple(parts)

    pipe = graph()
    pipe.build()
    parts = [[bytes(part.at(i)) for i in range(8)] for part in pipe.run()]
    theirs = by_webdataset(tars_by_webdataset, manifest)
    for part, ext in zip(parts, ("jpg", "cls", "txt"), strict=True):
        assert part == [sample[ext] for sample in theirs]


def test_dali_index_is_that_of_wds2idx(manifest):
    lines = (export(manifest, "dali") / "a.x.idx").read_text().splitlines()
    assert lines[0] == "v1.2 4"
    data = (manifest.root / "a.x.tar").read_bytes()
    words = lines[1].split()
    assert words[::4] == ["cls", "jpg", "txt"]
    assert words[3::4] == ["a/0.cls", "a/0.jpg", "a/0.txt"]
    start, size = int(words[9]), int(words[10])
    assert data[start : start + size] == b"hi"


def test_energon_reads_every_member(manifest, tars_by_webdataset):
    energon = pytest.importorskip("megatron.energon", reason="needs megatron-energon")
    from megatron.energon.cache.file_store import WebdatasetFileStore
    from megatron.energon.epathlib import EPath

    class Raw(energon.DefaultTaskEncoder):
        decoder = None  # bytes, not pictures
        cookers = (energon.Cooker(energon.stateless(lambda sample: sample)),)

    root = export(manifest, "energon")
    theirs = by_webdataset(tars_by_webdataset, manifest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pinned memory without a GPU, files it leaves open
        data = energon.get_val_dataset(
            str(root),
            split_part="train",
            worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=None,
            task_encoder=Raw(),
        )
        samples = list(energon.get_savable_loader(data))
        for sample, expected in zip(samples, theirs, strict=True):
            assert sample["__key__"].endswith(expected["__key__"])
            for ext in ("cls", "jpg", "txt"):
                assert sample[ext] == expected[ext]
        store = WebdatasetFileStore(EPath(str(root)))  # random access, by index.sqlite
        for expected in theirs:
            assert store[f"{expected['__key__']}.jpg"][0] == expected["jpg"]
        store.close()
        del data, samples
        gc.collect()


def test_energon_index_beside_links_leaves_ours_alone(manifest):
    ours = (manifest.root / "a.x.tar.idx").read_bytes()
    root = export(manifest, "energon")
    assert (root / "a.x.tar").resolve() == manifest.root / "a.x.tar"
    offsets = struct.unpack("<5Q", (root / "a.x.tar.idx").read_bytes())
    with tarfile.open(manifest.root / "a.x.tar") as tar:
        members = tar.getmembers()
        assert list(offsets) == [members[i].offset for i in (2, 5, 8, 11)] + [tar.offset]
    assert (manifest.root / "a.x.tar.idx").read_bytes() == ours
    assert read_manifest(manifest.root) == manifest
    identity = (root / ".nv-meta" / "index.uuid").read_text()
    assert export(manifest, "energon") == root  # again, over itself
    assert (root / ".nv-meta" / "index.uuid").read_text() == identity
    export(replace(manifest, shards=manifest.shards[:1]), "energon")
    assert (root / ".nv-meta" / "index.uuid").read_text() != identity


@pytest.mark.parametrize(
    ("kind", "names", "match"),
    [
        ("dali", ["a b.jpg"], "no place for blanks"),
        ("dali", ["a.jpg", "a."], "missing extension"),
        ("wids", ["x" * 101 + ".jpg"], "names of up to 100 bytes"),
        ("wids", ["a.jpg", "a.jpg"], "each once in a tar"),
        ("wids", ["a.jpg", "__meta__/x.json"], "is a sample for wids, but not for webdataset"),
        ("wids", ["a.jpg", ".hidden"], "is a sample for wids"),
        ("energon", ["a.jpg", "b.jpg", "a.txt"], "occurs before it or twice"),
    ],
)
def test_what_a_format_cannot_say_is_refused(tmp_path, picture, kind, names, match):
    make(tmp_path / "x.tar", [(name, picture(0)) for name in names])
    manifest = adopt([str(tmp_path)], rules=RULES).manifest
    with pytest.raises(ShardError, match=match):
        export(manifest, kind)


def test_unknown_kinds_are_refused_before_any_work():
    assert check_kinds("dali,wids") == ["dali", "wids"]
    assert check_kinds("") == []
    with pytest.raises(ShardError, match="'ffcv': is unknown; choose from dali, wids, energon"):
        check_kinds("dali,ffcv")
