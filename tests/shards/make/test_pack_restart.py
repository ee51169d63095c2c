"""A packing that is cut short, by whatever: pytest tests/shards/make/test_pack_restart.py"""

import errno
import os
import subprocess
import sys

import pytest

from sslpipe.errors import ShardError
from sslpipe.shards import PackSettings, open_manifest, open_threads, pack
from sslpipe.shards.make import work

SETTINGS = {"name": "p", "shard_bytes": 20_000}

# forks, so that sslpipe is imported once; 20 times a child packs until it is killed or done
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, pack

folder, outs, draws = Path(sys.argv[1]), Path(sys.argv[2]), random.Random(1)
codec, number, kills = ImageCodec(), 0, 0

def run():
    same = {"name": "p", "shard_samples": 4, "dedupe": "exact", "resize": 20}
    pack(folder, out, PackSettings(codec=codec, **same))

for _ in range(20):
    out = outs / str(number)
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    time.sleep(draws.uniform(0.0, 0.15))
    os.kill(child, signal.SIGKILL)
    kills += os.waitpid(child, 0)[1] == signal.SIGKILL
    number += (out / "manifest.json").exists() and not (out / ".pack").exists()
out = outs / str(number)
if not (out / "manifest.json").exists() or (out / ".pack" / "plan.json").exists():
    run()
elif (out / ".pack").exists():  # killed after its end, while it removed its records
    try:
        run()
    except ShardError as error:
        assert "already holds packed shards" in str(error)
    else:
        raise AssertionError("a finished packing was packed again")
print(kills)
"""


def content(folder):
    """Relative path -> bytes of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Stop(Exception):
    pass


def stop_after(shards):
    """A progress callback that ends the run when so many shards are told of."""
    told = []

    def progress(packed):
        told.append(packed)
        if len(told) == shards:
            raise Stop

    return progress


@pytest.fixture
def clean(folder, tmp_path, codec):
    """What an uninterrupted run makes."""
    pack(folder, tmp_path / "clean", PackSettings(codec=codec, **SETTINGS))
    return content(tmp_path / "clean")


def begun(folder, out, codec, *, shards=2, overwrite=False, **settings):
    """A packing that stopped after two shards."""
    with pytest.raises(Stop), open_threads(1) as pool:
        pack(
            folder,
            out,
            PackSettings(codec=codec, **SETTINGS | settings),
            overwrite=overwrite,
            pool=pool,
            progress=stop_after(shards),
        )
    return out


def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path, codec, picture):
    for number in range(90):
        path = tmp_path / "in" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number % 80))
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no")
    same = {"name": "p", "shard_samples": 4, "dedupe": "exact", "resize": 20}
    report = pack(tmp_path / "in", tmp_path / "clean", PackSettings(codec=codec, **same))
    assert (report.manifest.samples, len(report.duplicates)) == (80, 10)
    words = [sys.executable, "-W", "error", "-c", KILLED, tmp_path / "in", tmp_path / "outs"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 3
    outs = list((tmp_path / "outs").iterdir())
    assert outs
    assert all(content(out) == content(tmp_path / "clean") for out in outs)


def test_finished_shards_are_not_done_again(folder, tmp_path, codec, clean, monkeypatch):
    out = begun(folder, tmp_path / "out", codec)
    with pytest.raises(ShardError, match="or run an interrupted pack again"):
        open_manifest(out)
    before = {path: path.stat().st_ino for path in out.glob("*.tar")}
    assert before
    assert len(before) < sum(name.endswith(".tar") for name in clean)
    recorded = len(list((out / ".pack").glob("shard-*.json")))
    jobs = []
    write = work.write_shard
    monkeypatch.setattr(work, "write_shard", lambda job: jobs.append(job) or write(job))
    report = pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert len(jobs) == len(report.manifest.shards) - recorded
    assert content(out) == clean
    assert sum(path.stat().st_ino == node for path, node in before.items()) >= recorded


@pytest.mark.parametrize("damage", ["tar gone", "tar cut", "index changed", "record cut"])
def test_a_finished_shard_that_was_changed_is_made_again(folder, tmp_path, codec, clean, damage):
    out = begun(folder, tmp_path / "out", codec)
    tar = out / "p-000000.tar"
    index = out / "p-000000.tar.idx"
    if damage == "tar gone":
        tar.unlink()
    elif damage == "tar cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "index changed":
        index.write_bytes(index.read_bytes()[:-1] + b"x")
    else:
        (out / ".pack" / "shard-000000.json").write_text('{"number": 0')
    pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert content(out) == clean


@pytest.mark.parametrize("left", ["an empty folder", "nothing"])
def test_inputs_that_go_away_meanwhile_are_not_taken_for_bad_files(
    folder, tmp_path, codec, clean, left
):
    settings, away, out = PackSettings(codec=codec, **SETTINGS), tmp_path / "away", tmp_path / "out"
    told = []

    def unmount(packed):
        if not told:
            folder.rename(away)
            if left == "an empty folder":
                folder.mkdir()
        told.append(packed)

    with pytest.raises(ShardError, match=rf"^{folder}: went away meanwhile; bring it back"):
        pack(folder, out, settings, progress=unmount)
    assert len(told) == 1
    away.replace(folder)
    pack(folder, out, settings)
    assert content(out) == clean


def test_parts_of_a_killed_run_are_removed_and_nothing_else(folder, tmp_path, codec, clean):
    out = begun(folder, tmp_path / "out", codec)
    mine = ("p-notes.txt", "q-000000.tar.0123abcd.part", "p-000000.tar.part")
    for name in (*mine, "p-000001.tar.0123abcd.part", "p-000002.tar.0123abcd.part.idx"):
        (out / name).write_bytes(b"old")
    pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert content(out) == clean | dict.fromkeys(mine, b"old")


def test_other_settings_or_inputs_are_refused_and_named(folder, tmp_path, codec, clean):
    out = begun(folder, tmp_path / "out", codec)
    before = content(out)

    def refused(match, **settings):
        with pytest.raises(ShardError, match=match):
            pack(folder, out, PackSettings(codec=codec, **SETTINGS | settings))
        assert content(out) == before

    refused(r"\(resize: None there, 15 now\); repeat that command .* --overwrite", resize=15)
    refused(r"\(name: p there, q now, seed: 0 there, 3 now\)", seed=3, name="q")
    (folder / "new.jpg").write_bytes(b"no")
    refused(r"\(files: 20 there, 21 now, inputs: ")
    (folder / "new.jpg").unlink()
    pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert content(out) == clean


def test_overwrite_replaces_a_packing_and_nothing_else(folder, tmp_path, codec, clean):
    out = begun(folder, tmp_path / "out", codec, name="old")
    (out / "mine-000000.tar").write_bytes(b"mine")
    (out / "notes.txt").write_bytes(b"mine")
    mine = {"mine-000000.tar": b"mine", "notes.txt": b"mine"}
    pack(folder, out, PackSettings(codec=codec, **SETTINGS), overwrite=True)
    assert content(out) == clean | mine
    pack(folder, out, PackSettings(codec=codec, **SETTINGS | {"name": "other"}), overwrite=True)
    assert not list(out.glob("p-*"))
    pack(folder, out, PackSettings(codec=codec, **SETTINGS), overwrite=True)
    assert content(out) == clean | mine


def test_overwrite_goes_on_with_its_own_unfinished_run(folder, tmp_path, codec, clean, monkeypatch):
    out = begun(folder, tmp_path / "out", codec, overwrite=True)
    recorded = len(list((out / ".pack").glob("shard-*.json")))
    jobs, write = [], work.write_shard
    monkeypatch.setattr(work, "write_shard", lambda job: jobs.append(job) or write(job))
    pack(folder, out, PackSettings(codec=codec, **SETTINGS), overwrite=True)
    assert len(jobs) == sum(name.endswith(".tar") for name in clean) - recorded
    assert recorded > 0
    assert content(out) == clean


def test_files_in_the_way_are_never_taken_for_ours(folder, tmp_path, codec):
    out = tmp_path / "out"
    out.mkdir()
    (out / "p-000007.tar").write_bytes(b"mine")
    with pytest.raises(ShardError, match=r"p-000007.tar: is in the way"):
        pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert content(out) == {"p-000007.tar": b"mine"}


def test_a_run_killed_while_it_cleaned_up_counts_as_finished(folder, tmp_path, codec, clean):
    out = tmp_path / "out"
    pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    (out / ".pack").mkdir()
    (out / ".pack" / "shard-000000.json").write_text("{}")
    with pytest.raises(ShardError, match="already holds packed shards"):
        pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert content(out) == clean


def test_a_full_disk_says_how_to_go_on(folder, tmp_path, codec, clean, monkeypatch):
    out = tmp_path / "out"
    sync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        match = r"p-00000\d.tar: No space left on device; .* run the same command again"
        with pytest.raises(ShardError, match=match):
            pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    pack(folder, out, PackSettings(codec=codec, **SETTINGS))
    assert content(out) == clean


def test_a_place_that_cannot_be_written(folder, codec):
    with pytest.raises(ShardError, match=r"/proc/nowhere.*: No such file.*see that /proc/nowhere"):
        pack(folder, "/proc/nowhere", PackSettings(codec=codec))
