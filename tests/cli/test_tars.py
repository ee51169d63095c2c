"""The commands index and inspect, as a user types them."""

import json
import shutil

import pytest
from PIL import Image

from sslpipe.shards import read_manifest

from ..version_1 import downgrade


@pytest.fixture
def tars(sample, tmp_path):
    """The tars of the sample photos without index and manifest."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for path in sample.glob("*.tar"):
        shutil.copy(path, folder)
    return folder


def test_from_bare_tars_to_a_set_that_verifies(run, tars, sample):
    out, err = run("index", tars, "--export", "dali,wids,energon")
    assert "72 samples in 4 tars" in out
    assert "MB/s" in err
    for path in sample.glob("*.idx"):
        assert (tars / path.name).read_bytes() == path.read_bytes()
    names = {path.name for path in tars.iterdir()}
    assert {"shardindex.json", "photos-000000.idx", "energon"} <= names
    assert "all good" in run("verify", tars)[0]
    assert read_manifest(tars).fingerprint == read_manifest(sample).fingerprint
    assert "4 were indexed already" in run("index", tars)[1]


def test_a_set_of_version_1_is_refused_and_upgraded(run, sample, tmp_path):
    old = shutil.copytree(sample, tmp_path / "old")
    downgrade(old)
    for command in ("verify", "inspect"):
        _, err = run(command, old, code=2)
        assert f"run `sslpipe index {old}` (the tars stay as they are)" in err
    assert "72 samples in 4 tars" in run("index", old)[0]
    for path in sample.iterdir():
        assert (old / path.name).read_bytes() == path.read_bytes()
    assert "all good" in run("verify", old)[0]


def test_problems_are_listed_and_the_exit_code_says_so(run, tars):
    (path,) = tars.glob("*3.tar")
    path.write_bytes(path.read_bytes()[:5000])
    out, err = run("index", tars / "photos-{000000..000003}.tar", "--decode", code=1)
    assert "samples in 3 tars" in out
    assert "photos-000003.tar" in err
    assert "1 problems, all listed in" in err
    (line,) = (tars / "report.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == "photos-000003.tar"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("index", "nowhere/*.tar"), "no such tar"),
        (("index", "x.tar", "--export", "ffcv"), "choose from dali, wids, energon"),
        (("inspect", "nowhere"), "no manifest"),
    ],
)
def test_wrong_input(run, words, message, tmp_path):
    assert message in run(*words, code=2, cwd=tmp_path)[1]


def test_what_a_set_holds(run, sample):
    out, _ = run("inspect", sample)
    for word in ("72", "128 to 255", "jpg", *read_manifest(sample).classes):
        assert word in out
    found = json.loads(run("inspect", sample, "--json")[0])
    assert (found["samples"], found["formats"]) == (72, {"jpg": 72})
    assert sum(found["sizes"].values()) == sum(found["labels"].values()) == 72


def test_one_sample_by_key_or_row(run, sample, tmp_path):
    keys = run("inspect", sample, "--keys")[0].split()
    assert len(keys) == 72
    out, _ = run("inspect", sample, keys[30], "--out", tmp_path / "photo.jpg", "--json")
    found = json.loads(out)
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert photo.size == (found["width"], found["height"])
    assert found["members"]["cls"] == str(found["label"])
    assert found["members"]["jpg"].endswith(" bytes")
    assert found["flags"] == "gpu_jpeg"
    assert json.loads(run("inspect", sample, "--row", 30, "--json")[0]) == found
    assert keys[30] in run("inspect", sample, "--row", 30)[0]
    assert "has no sample 'x'" in run("inspect", sample, "x", code=2)[1]
    assert "name it by its key or --row" in run("inspect", sample, "--out", "x.jpg", code=2)[1]


def test_a_sheet_of_samples(run, sample, tmp_path):
    out, _ = run("inspect", sample, "--sheet", tmp_path / "s.png", "--count", 10)
    assert "10 of 72 samples" in out
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (8 * 134 + 6, 2 * 162 + 6)
