"""Sets of version 1 become sets of version 2: pytest tests/shards/make/test_upgrade.py"""

import json

import pytest

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import (
    PackSettings,
    Problem,
    Rules,
    exclude_rows,
    open_manifest,
    pack,
    read_index,
    read_manifest,
    verify,
)
from sslpipe.shards.make.adopt import adopt
from tests.version_1 import downgrade

RULES = Rules(ImageCodec())


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.fixture
def out(folder, tmp_path, codec):
    """A packed set with captions that look like labels, long names, and an excluded row."""
    for path in folder.glob("cat/*.jpg"):
        path.with_suffix(".txt").write_text("a cat")
        path.with_suffix(".json").write_text('{"label": 7}')
    (folder / "0.jpg").write_bytes((folder / "18.jpg").read_bytes())
    (folder / ("long" * 50 + ".jpg")).write_bytes((folder / "19.jpg").read_bytes())
    settings = PackSettings(codec=codec, name="p", shard_bytes=30_000, seed=3)
    manifest = pack(folder, tmp_path / "out", settings).manifest
    document = json.loads((tmp_path / "out" / "manifest.json").read_text())
    document["exclude"] = {manifest.shards[1].file: [1]}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")
    return tmp_path / "out"


def test_an_old_set_becomes_the_very_one_that_is_packed_now(out):
    new, manifest = content(out), read_manifest(out)
    downgrade(out)
    assert content(out) != new
    told = []
    made = adopt([str(out)], rules=RULES, progress=told.append)
    assert content(out) == new
    assert made.manifest == read_manifest(out) == manifest
    assert made.manifest.fingerprint == manifest.fingerprint
    assert (made.problems, len(told)) == ((), len(manifest.shards))
    assert verify(made.manifest, codec=ImageCodec()) == []


def test_manifests_that_excluding_left_behind_are_upgraded_too(out):
    before = read_manifest(out)
    exclude_rows(before, problems=[Problem(before.shards[0].file, "", "bad", 0)])
    new, files = content(out), sorted(path.name for path in out.glob("manifest*.json"))
    assert len(files) == 2
    downgrade(out)
    one = json.loads((out / "manifest.json").read_text())
    for file in files:
        document = one | {"exclude": json.loads(new[file]).get("exclude", {})}
        (out / file).write_text(json.dumps(document))
    adopt([str(out)], rules=RULES)
    assert content(out) == new
    assert read_manifest(out / files[0]) == before


def test_no_choice_is_made_anew(tmp_path, picture, folder, out):
    """Rules that would find other payloads and labels change nothing."""
    new = content(out)
    downgrade(out)
    adopt([str(out)], rules=Rules(ImageCodec(), "none", label_key="other", only="txt"), out=out)
    assert content(out) == new


def test_tars_that_lie_elsewhere(folder, tmp_path, codec, out):
    new = content(out)
    away = tmp_path / "away"
    adopt([str(out / "*.tar")], rules=RULES, out=away)
    before = content(away)
    downgrade(away)
    made = adopt([str(away)], rules=RULES)
    assert content(away) == before
    assert all(shard.url for shard in made.manifest.shards)
    assert content(out) == new


def test_everything_else_refuses_it_and_names_the_command(out):
    downgrade(out)
    said = rf"version 1, this sslpipe reads 2; run `sslpipe index {out}` \(the tars stay as they"
    for refusing in (open_manifest, read_manifest):
        with pytest.raises(ShardError, match=rf"manifest.json: manifest {said}"):
            refusing(out)
    with pytest.raises(ShardError, match=rf"p-000000.tar.idx: index {said}"):
        read_index(out / "p-000000.tar")


def test_packing_its_tars_is_refused_but_not_packing_over_it(out, folder, tmp_path, codec):
    new = content(out)
    downgrade(out)
    settings = PackSettings(codec=codec, name="p", shard_bytes=30_000, seed=3)
    with pytest.raises(ShardError, match="version 1, this sslpipe reads 2; run `sslpipe index"):
        pack(str(out / "*.tar"), tmp_path / "again", settings)
    pack(folder, out, settings, overwrite=True)
    assert {name for name in content(out) if ".tar" in name} == {n for n in new if ".tar" in n}
    assert read_manifest(out).exclude == {}


@pytest.mark.parametrize("damage", ["tar", "tar gone", "index", "index gone", "index cut"])
def test_what_is_damaged_is_refused_and_the_set_stays_of_version_1(out, damage):
    downgrade(out)
    tar, index = out / "p-000000.tar", out / "p-000000.tar.idx"
    if "gone" in damage:
        (tar if "tar" in damage else index).unlink()
    elif damage == "index cut":
        index.write_bytes(index.read_bytes()[:-1])
    else:
        path, at = (tar, 600) if damage == "tar" else (index, 56 + 8)
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
    with pytest.raises(ShardError, match=r"--rebuild|copy it again"):
        adopt([str(out)], rules=RULES)
    assert json.loads((out / "manifest.json").read_text())["version"] == 1


def test_an_upgrade_that_was_cut_short_goes_on(out):
    new = content(out)
    downgrade(out)
    (out / "p-000000.tar.idx").write_bytes(new["p-000000.tar.idx"])
    adopt([str(out)], rules=RULES)
    assert content(out) == new


def test_rebuilding_keeps_what_only_the_old_manifest_knows(out):
    manifest = read_manifest(out)
    downgrade(out)
    made = adopt([str(out)], rules=RULES, rebuild=True).manifest
    assert (made.classes, made.seed, made.exclude, made.name) == (
        manifest.classes, manifest.seed, manifest.exclude, manifest.name,
    )  # fmt: skip
    assert made.fingerprint == manifest.fingerprint
