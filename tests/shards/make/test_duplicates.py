"""Deduplication against brute force: pytest tests/shards/make/test_duplicates.py"""

import json

import numpy as np
import pytest

from sslpipe.shards import PackSettings, pack
from sslpipe.shards.make.duplicates import exact, masks, near


def brute_near(hashes, bits):
    kept, found = [], {}
    for item, digest in enumerate(hashes):
        twins = [k for k in kept if bin(int(hashes[k], 16) ^ int(digest, 16)).count("1") <= bits]
        if twins:
            found[item] = twins[0]
        else:
            kept.append(item)
    return found


def clustered(count, seed):
    """Hashes around a few centres, some further apart than any threshold, some closer."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 20, dtype=np.uint64)
    for _ in range(count):
        value = int(rng.choice(centres))
        for bit in rng.integers(0, 64, rng.integers(0, 10)):
            value ^= 1 << int(bit)
        yield f"{value:016x}"


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 8, 15])
def test_near_is_what_brute_force_finds(bits):
    hashes = list(clustered(400, bits))
    found = near(hashes, bits)
    assert found == brute_near(hashes, bits)
    assert 0 < len(found) < 400


def test_near_is_greedy_in_order_so_chains_do_not_collapse():
    chain = [f"{(1 << n) - 1:016x}" for n in range(9)]  # each differs from the next in one bit
    assert near(chain, 2) == {1: 0, 2: 0, 4: 3, 5: 3, 7: 6, 8: 6}


def test_exact_keeps_the_first_and_takes_no_hash_for_no_twin():
    assert exact(["a", None, "b", "a", None, "b", "a"]) == {3: 0, 5: 2, 6: 0}
    assert near([None, "00", None, "00"], 0) == {3: 1}


@pytest.mark.parametrize("count", [2, 3, 6, 17])
def test_masks_are_all_pairs_of_bands_that_hold_every_bit_once(count):
    found = [int(mask) for mask in masks(count)]
    assert len(set(found)) == count * (count - 1) // 2
    held = [sum(mask >> bit & 1 for mask in found) for bit in range(64)]
    assert held == [count - 1] * 64
    widths = [mask.bit_count() for mask in found]
    assert max(widths) - min(widths) <= 2


@pytest.fixture
def repeated(folder, picture):
    """Copies of two files, one of them under a name that sorts before, and a look-alike."""
    (folder / "again.jpg").write_bytes(picture(0))
    (folder / "dog" / "zero.jpg").write_bytes(picture(0))
    (folder / "zz.png").write_bytes(picture(18, "PNG"))  # 18.jpg before compression
    (folder / "broken.jpg").write_bytes(b"no")
    (folder / "broken2.jpg").write_bytes(b"no")
    return folder


def rows(out):
    lines = map(json.loads, (out / "report.jsonl").read_text().splitlines())
    return {row["file"]: row["of"] for row in lines if row["kind"] == "duplicate"}


def test_exact_duplicates_are_left_out_and_reported(repeated, tmp_path, codec, by_index):
    report = pack(
        repeated, tmp_path / "out", PackSettings(codec=codec, dedupe="exact", shard_samples=7)
    )
    twins = {d.file: d.of for d in report.duplicates}
    assert twins == {
        "cat/0.jpg": "again.jpg",
        "dog/zero.jpg": "again.jpg",
        "broken2.jpg": "broken.jpg",
    }
    assert rows(tmp_path / "out") == twins
    assert [note.file for note in report.failures] == ["broken.jpg"]
    keys = {key for key, *_ in by_index(report.manifest)}
    assert len(keys) == 21
    assert not keys & {"cat/0", "dog/zero"}


def test_near_duplicates_are_those_of_the_hash(repeated, tmp_path, codec):
    files = {p.relative_to(repeated).as_posix(): p.read_bytes() for p in repeated.rglob("*.*")}
    good = sorted((f for f in files if "broken" not in f), key=lambda file: file.rpartition(".")[0])
    hashes = [f"{codec.perceptual_hash(files[file]):016x}" for file in good]
    expected = {good[a]: good[b] for a, b in brute_near(hashes, 4).items()}
    report = pack(repeated, tmp_path / "out", PackSettings(codec=codec, dedupe="near"))
    assert rows(tmp_path / "out") == expected == {d.file: d.of for d in report.duplicates}
    assert expected["zz.png"] == "18.jpg"
    assert {note.file for note in report.failures} == {"broken.jpg", "broken2.jpg"}


def test_nothing_is_left_out_unless_asked(repeated, tmp_path, codec):
    report = pack(repeated, tmp_path / "out", PackSettings(codec=codec))
    assert report.duplicates == ()
    assert report.manifest.samples == 23
