"""The photos that come with the project: pytest tests/shards/test_sample.py"""

import csv
import gc
import re
import warnings
from pathlib import Path

import pytest

from sslpipe.shards import PackSettings, open_manifest, pack, verify

ROOT = Path(__file__).parents[2] / "shards"


@pytest.fixture(scope="module")
def manifest():
    return open_manifest(ROOT / "sample")


@pytest.fixture(scope="module")
def samples(manifest, by_webdataset):
    return by_webdataset(manifest)


def test_every_byte_is_right(manifest, codec):
    assert verify(manifest, inspect=codec.inspect) == []
    assert (manifest.name, manifest.samples, len(manifest.classes)) == ("photos", 72, 12)


def test_packing_its_own_members_again_gives_the_same_files(manifest, samples, tmp_path, codec):
    for sample in samples:
        path = tmp_path / "photos" / f"{sample['__key__']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample["jpg"])
    pack(tmp_path / "photos", tmp_path / "out", PackSettings(codec=codec, shard_bytes=512 * 1024))
    again = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert again == {p.name: p.read_bytes() for p in manifest.root.iterdir() if p.suffix != ".csv"}


def test_every_photo_has_a_licence_that_allows_it(samples):
    with (ROOT / "sample" / "MANIFEST.csv").open(encoding="utf-8") as file:
        licences = {row["file"].removesuffix(".jpg"): row for row in csv.DictReader(file)}
    assert licences.keys() == {sample["__key__"] for sample in samples}
    free = r"public-domain|CC0-1\.0|CC-BY-\d\.0|no-known-restrictions"
    for row in licences.values():
        assert re.fullmatch(free, row["licence"])
        assert row["author"]


def test_the_code_in_the_specification_runs(monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "wds" in c)
    monkeypatch.chdir(ROOT.parent)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        exec(code, names)
        gc.collect()
    assert names["jpeg"].startswith(b"\xff\xd8")
    assert 0 <= names["label"] < 12
