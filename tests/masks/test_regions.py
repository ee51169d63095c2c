"""Random regions against the official pattern, made again with Pillow."""

import numpy as np
from PIL import Image

from sslpipe import masks
from sslpipe.masks.regions import cubic
from sslpipe.rng import Keys, Place

SIDE, STEP = 32, 4  # patches of 4 px in 128 px


def official(count):
    """`train_random.lua`: a pattern of 25 %, cut where 20 to 30 % are hidden; (count, 32, 32)."""
    rng = np.random.default_rng(0)
    low = Image.fromarray(rng.random((120, 120), dtype=np.float32))
    pattern = np.asarray(low.resize((2000, 2000), Image.Resampling.BICUBIC)) < 0.25
    found = []
    while len(found) < count:
        y, x = rng.integers(0, 2000 - 128, 2)
        cut = pattern[y : y + 128, x : x + 128]
        if 0.2 < cut.mean() < 0.3:
            found.append(cut[STEP // 2 :: STEP, STEP // 2 :: STEP])
    return np.stack(found)


def ours(count, grid=(SIDE, SIDE), **settings):
    ids = np.arange(count)
    keys = Keys(0, np.zeros(count, dtype=np.int64), ids, np.zeros(1, dtype=np.int64))
    made = masks.RandomRegion(**settings).draw(keys, Place(0, ids, count), "masks/hole", grid)
    return made.reshape(count, *grid)


def together(hidden, distance):
    """How often the patch `distance` below or beside a hidden one is hidden too."""
    pairs = ((hidden[:, distance:], hidden[:, :-distance]),
             (hidden[..., distance:], hidden[..., :-distance]))  # fmt: skip
    return np.mean([(a & b).sum() / b.sum() for a, b in pairs])


def test_blobs_are_as_large_as_the_official_ones():
    reference = official(600)
    share = reference.mean()  # below 0.25: interpolated noise is lower there than even noise
    assert 0.21 < share < 0.25
    made = ours(600, density=float(share))
    for distance in (1, 2, 4, 10):  # 4, 8, 16 and 40 px; single patches would give the share
        assert abs(together(made, distance) - together(reference, distance)) < 0.02
    assert together(made, 1) > share + 0.4


def test_every_patch_is_hidden_equally_often_and_the_count_is_exact():
    made = ours(4000)
    assert (made.sum((1, 2)) == 256).all()
    # 5 standard errors of one patch; a grid without the random start would show its cells
    assert abs(made.mean(0) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_cells_and_density_are_as_set():
    assert (ours(50, density=0.4).sum((1, 2)) == 409).all()
    assert together(ours(200, cells=3.0), 2) > together(ours(200), 2) + 0.1
    wide = ours(200, grid=(16, SIDE))  # blobs of the same size, whatever the shape
    assert abs(together(wide, 2) - together(ours(200), 2)) < 0.03


def test_noise_is_enlarged_as_pillow_does():
    line = np.random.default_rng(0).random((1, 12), dtype=np.float32)
    enlarged = np.asarray(Image.fromarray(line).resize((96, 1), Image.Resampling.BICUBIC))[0]
    made = cubic((np.arange(96) + 0.5) / 8 - 0.5, 12) @ line[0]
    np.testing.assert_allclose(made[16:-16], enlarged[16:-16], atol=1e-6)
