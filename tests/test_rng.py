"""Philox: known answers, the torch twin, and that a draw depends on its own place only."""

import numpy as np
import pytest
import torch

from sslpipe import permutations, philox, rng

# Random123's known answers for philox4x32-10: counter, key, output
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_known_answers_numpy_and_torch(counter, key, want):
    got = philox.philox(tuple(map(np.uint64, counter)), tuple(map(np.uint64, key)))
    assert [int(word) for word in got] == want
    twin = philox.philox_torch(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in twin] == want


def test_the_torch_twin_is_bit_equal():
    words = np.random.default_rng(0).integers(0, 2**32, (6, 4096), dtype=np.uint64)
    want = philox.philox(tuple(words[:4]), tuple(words[4:]))
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in words]
    got = philox.philox_torch(tuple(tensors[:4]), tuple(tensors[4:]))
    for a, b in zip(want, got, strict=True):
        assert (a.astype(np.int64) == b.numpy()).all()


def test_uniforms_are_exact_in_float32_and_uniform():
    u = rng.uniforms(64, seed=1, epoch=0, stream="x", ids=np.arange(2000))
    assert (u.astype(np.float32) == u).all()
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.histogram(u, 64, (0, 1))[0]
    expected = u.size / 64
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 120  # 63 degrees of freedom: p < 1e-5


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"epoch": 1}, {"stream": "y"}, {"ids": np.arange(1, 9)}, {"view": 1}]
)
def test_every_part_of_the_key_matters(change):
    place = {"seed": 1, "epoch": 0, "stream": "x", "ids": np.arange(8), "view": 0}
    a, b = rng.uniforms(8, **place), rng.uniforms(8, **(place | change))
    assert (a != b).mean() > 0.85  # shifted ids share nothing either: rows move, values differ
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5


def test_more_draws_leave_the_first_ones_alone():
    a = rng.uniforms(3, seed=1, epoch=0, stream="x", ids=np.arange(5))
    b = rng.uniforms(21, seed=1, epoch=0, stream="x", ids=np.arange(5))
    assert (a == b[:, :3]).all()


def test_draws_can_be_taken_bit_by_bit():
    keys = rng.Keys(3, np.array([0, 1]), np.array([5, -6]), np.arange(2))
    whole = keys.uniforms("x", 40)
    assert np.array_equal(keys.uniforms("x", 9, first=4), whole[..., 16:25])


def test_epochs_and_ids_broadcast_per_sample():
    ids, epochs = np.array([5, -5, 7]), np.array([0, 0, 1])
    together = rng.words(4, seed=3, epoch=epochs, stream="x", ids=ids)
    for i in range(3):
        alone = rng.words(4, seed=3, epoch=epochs[i], stream="x", ids=ids[i])
        assert (together[i] == alone).all()


def test_permutations_are_permutations_and_differ():
    a = permutations.permutation(1000, seed=0, epoch=0, stream="x")
    b = permutations.permutation(1000, seed=0, epoch=1, stream="x")
    c = permutations.permutation(1000, seed=0, epoch=0, stream="x", item=1)
    assert (np.sort(a) == np.arange(1000)).all()
    assert (a == b).mean() < 0.02
    assert (a == c).mean() < 0.02


def test_ids_are_part_of_the_format_and_never_change():
    assert rng.sample_id("animal/chelsea") == -3013158419716197888
    assert rng.stream_id("views/global/ColorJitter") == 49334


def test_ragged_draws_are_those_of_words():
    uids, epochs = np.array([5, -7, 2**62, 9]), np.array([0, 1, 0, 3])
    keys = rng.Keys(4, epochs, uids, np.array([2]))
    blocks = np.array([3, 0, 1, 2])
    found = keys.ragged("x", blocks)
    assert found.shape == (6, 4)
    whole = keys.words("x", 12)[0].reshape(4, 3, 4)
    expected = [whole[place, :count] for place, count in enumerate(blocks)]
    assert (found == np.concatenate(expected)).all()


def test_draws_of_one_epoch_are_the_same_after_draws_of_several():
    """The keys of several epochs stand in memory that is used again; that of one epoch is kept."""
    ids, epochs = np.arange(50), np.arange(50) % 3
    one, several = (
        {"seed": 5, "epoch": epoch, "stream": "a", "ids": ids} for epoch in (0 * epochs, epochs)
    )
    before = rng.words(9, **one)
    mixed = rng.words(9, **several)
    assert np.array_equal(rng.words(9, **one), before)
    assert np.array_equal(rng.words(9, **several), mixed)
    for epoch in range(3):
        here = epochs == epoch
        alone = rng.words(9, seed=5, epoch=epoch, stream="a", ids=ids[here])
        assert np.array_equal(mixed[here], alone)
