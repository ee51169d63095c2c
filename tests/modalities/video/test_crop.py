"""The crop of VideoMAE against a slow transcription of its table of boxes."""

import itertools

import numpy as np
import pytest

from sslpipe.errors import RecipeError
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.recipe.names import Entry

SCALES = (1, 0.875, 0.75, 0.66)


def boxes(height, width, size):
    """All boxes of `_sample_crop_size`, `_sample_fix_offset` and `fill_fix_offset`: x, y, w, h."""
    base, found = min(height, width), set()
    sides = [int(base * scale) for scale in SCALES]
    tall = [size[0] if abs(side - size[0]) < 3 else side for side in sides]
    wide = [size[1] if abs(side - size[1]) < 3 else side for side in sides]
    for i, j in itertools.product(range(4), range(4)):
        if abs(i - j) <= 1:
            h, w = tall[i], wide[j]
            across, down = (width - w) // 4, (height - h) // 4
            places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2)]
            places += [(0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
            found |= {(x * across, y * down, w, h) for x, y in places}
    return found


def drawn(height, width, count, size=(224, 224)):
    crop = Entry("MultiScaleCrop", {"size": list(size)})
    group, uids = policy("global", [crop], count=1, shared=False), np.arange(count)
    sizes = np.broadcast_to([height, width], (count, 2))
    table = draw(group, group_keys(group, seed=0, epochs=0 * uids, uids=uids), sizes)
    return [tuple(row) for row in table[0].astype(int).tolist()]


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (257, 457)])
def test_its_boxes_are_the_official_ones_alike_often(height, width):
    made, official = drawn(height, width, 13_000), boxes(height, width, (224, 224))
    assert set(made) == official
    assert {side for box in official for side in box[2:]} >= {224, 192}
    if (height, width) == (256, 340):
        assert {side for *_, side in official} == {256, 224, 192, 168}
        assert len(official) <= 130
        counts = np.unique([str(box) for box in made], return_counts=True)[1]
        assert counts.min() > 50  # of 100 in the mean; equal boxes of two kinds come more often


def test_sides_near_the_size_become_it():
    assert {w for _, _, w, _ in drawn(224 * 8 // 7 + 1, 400, 500)} >= {224}
    small = drawn(30, 40, 500, size=(29, 29))
    assert {h for *_, h in small} == {29, 26, 22, 19}  # 30 and 29 become 29


def test_scales_that_cannot_be_are_refused():
    for settings in ({"scales": [0.0]}, {"scales": []}, {"max_distort": -1}):
        entry = Entry("MultiScaleCrop", {"size": [8, 8], **settings}, where="r.yaml:3")
        with pytest.raises(RecipeError, match=r"r.yaml:3: MultiScaleCrop: (scales|max_distort) ="):
            policy("global", [entry], count=1, shared=False)
