"""The contact sheet: masks lie over the view that they belong to."""

import numpy as np
import pytest

import sslpipe
from sslpipe.image.sheet import GREY, columns_of
from sslpipe.recipe import parse_recipe

RECIPE = """\
stream: {{batch_size: 8}}
views:
  global: {{count: 2, ops: [RandomResizedCrop: {{size: [128, 128]}}]}}
masks:
  mine: {{count: {count}, patch_size: 32, sampler: random}}
"""


@pytest.mark.parametrize(("count", "views"), [(2, [0, 1]), (1, [0]), (3, [0, 0, 0])])
def test_one_mask_per_view_lies_on_its_view_others_on_the_first(packed, count, views):
    recipe = parse_recipe(RECIPE.format(count=count))
    with sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        batch = pipe.make_batch(pipe.load_share(0), 0)
        columns = list(columns_of(batch, pipe.spec, pipe.views.policies, 8))
    assert [column.title for column in columns[2:]] == [f"mask mine {m}" for m in range(count)]
    for m, view in enumerate(views):
        hidden = batch.masks["mine"][m].numpy().reshape(8, 4, 4).repeat(32, 1).repeat(32, 2)
        made, below = columns[2 + m].pictures_BHWC, columns[view].pictures_BHWC
        np.testing.assert_array_equal(made[~hidden], below[~hidden])
        assert (made[hidden] == GREY).all()
        assert columns[2 + m].captions == ["12 of 16 hidden"] * 8
