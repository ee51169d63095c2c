"""All mask samplers: keyed by sample or by slot, exact counts where promised, mistakes found early.

Statistical bounds elsewhere in this folder's mask tests are 5 standard errors or more: a false
alarm is rarer than 1 in 10**6.
"""

import numpy as np
import pytest

import sslpipe
from sslpipe import masks
from sslpipe.errors import RecipeError
from sslpipe.masks import SAMPLERS, Multiblock, RandomPatches
from sslpipe.masks.grids import choose_patches
from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Keys, Place

GRID = (14, 14)
PER_SAMPLE = {
    "random": (RandomPatches(), 2),
    "simmim": (masks.SimMIMUnits(), 2),
    "blockwise": (masks.Blockwise(), 2),
    "blockwise complete": (masks.Blockwise(finish="complete"), 2),
    "ibot": (masks.IBotBlocks(), 2),
    "dinov2": (masks.DINOv2Blocks(), 2),
    "context": (Multiblock(part="context"), 1),
    "targets": (Multiblock(part="targets"), 4),
    "inverse_block": (masks.InverseBlock(), 2),
    "random_region": (masks.RandomRegion(), 2),
}
REFERENCE = {
    "random": (RandomPatches(mode="reference"), 2),
    "dinov2": (masks.DINOv2Blocks(mode="reference"), 2),
    "dinov3": (masks.DINOv2Blocks(mode="reference", finish="complete"), 2),
    "context": (Multiblock(part="context", mode="reference"), 1),
    "targets": (Multiblock(part="targets", mode="reference"), 4),
}
UIDS = np.random.default_rng(0).integers(-(2**62), 2**62, 24)
EPOCHS = np.repeat([3, 4], 12)  # a batch may straddle two epochs


def drawn(sampler, count, *, epochs=EPOCHS, uids=UIDS, step=7, slots=None, size=24, grid=GRID):
    slots = np.arange(len(uids)) if slots is None else slots
    keys = Keys(0, epochs, uids, np.arange(count, dtype=np.int64))
    made = sampler.draw(keys, Place(step, slots, size), "masks/mine", grid)
    assert made.dtype == bool
    assert made.shape == (count, len(uids), grid[0] * grid[1])
    return made


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_mask_is_its_sample_s_own(name):
    sampler, count = PER_SAMPLE[name]
    together = drawn(sampler, count)
    shuffled = np.random.default_rng(1).permutation(24)
    np.testing.assert_array_equal(
        drawn(sampler, count, epochs=EPOCHS[shuffled], uids=UIDS[shuffled], step=99, size=4096),
        together[:, shuffled],
    )
    for b in (0, 11, 23):
        alone = drawn(sampler, count, epochs=EPOCHS[[b]], uids=UIDS[[b]], slots=np.array([b]))
        np.testing.assert_array_equal(alone, together[:, [b]])


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_samples_views_and_epochs_differ(name):
    sampler, count = PER_SAMPLE[name]
    made = np.concatenate([drawn(sampler, count), drawn(sampler, count, epochs=EPOCHS + 2)], 1)
    samples = [masks.tobytes() for masks in made.swapaxes(0, 1) if masks.any()]
    assert len(set(samples)) == len(samples) > 24
    both = made[:2].any(-1).all(0)
    assert both.sum() >= 8 or count == 1
    assert (made[0] != made[-1]).any(-1)[both].mean() > 0.8 or count == 1


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("world_size", [2, 3, 24])
def test_any_split_of_the_global_batch_makes_the_same_masks(name, world_size):
    sampler, count = REFERENCE[name]
    whole = drawn(sampler, count)
    slots = np.random.default_rng(2).permutation(24).reshape(world_size, -1)
    for mine in slots:
        share = drawn(sampler, count, uids=UIDS[mine], epochs=EPOCHS[mine], slots=mine)
        np.testing.assert_array_equal(share, whole[:, mine])
    assert not np.array_equal(drawn(sampler, count, step=8), whole)


@pytest.mark.parametrize("name", [n for n, (s, _) in PER_SAMPLE.items() if s.hidden(GRID)])
def test_promised_counts_are_exact(name):
    sampler, count = PER_SAMPLE[name]
    counts = drawn(sampler, count).sum(-1)
    assert (counts == sampler.hidden(GRID)).all()


def test_counts_of_the_papers():
    assert RandomPatches(ratio=0.75).hidden((14, 14)) == 147
    assert masks.SimMIMUnits().hidden((14, 14)) == 120
    assert masks.SimMIMUnits(unit=8).hidden((48, 48)) == 1408
    assert masks.InverseBlock().hidden((14, 14)) == 196 - 39
    assert masks.Centre().hidden((8, 8)) == 16
    assert masks.Blockwise(patches=118, finish="complete").hidden((14, 14)) == 118


def test_random_reference_drops_the_same_patches_everywhere():
    made = drawn(RandomPatches(ratio=0.15, mode="reference"), 2)
    assert (made == made[0, 0]).all()
    assert made[0, 0].sum() == 30


def test_random_hides_every_patch_equally_often():
    uids, epochs = np.arange(4000), np.zeros(4000, dtype=np.int64)
    rate = drawn(RandomPatches(), 1, uids=uids, epochs=epochs, size=4000)[0].mean(0)
    np.testing.assert_allclose(rate, 0.75, atol=0.041)  # 6 standard errors for each of 196


def test_simmim_hides_whole_units():
    hidden = drawn(masks.SimMIMUnits(), 2).reshape(2, 24, 7, 2, 7, 2)
    np.testing.assert_array_equal(hidden.any((3, 5)), hidden.all((3, 5)))


def test_centre_is_the_middle_half():
    hidden = drawn(masks.Centre(), 1, grid=(8, 4)).reshape(24, 8, 4)
    assert hidden[:, 2:6, 1:3].all()
    assert (hidden.sum((1, 2)) == 8).all()


def test_choose_prefers_then_takes_the_smallest_words_and_the_first_of_equals():
    words = np.array([[5, 1, 1, 0], [7, 7, 7, 7]], dtype=np.uint64)
    preferred = np.array([[True, False, False, False], [False, True, True, False]])
    chosen = choose_patches(words, np.array([2, 1]), preferred=preferred)
    assert chosen.tolist() == [[True, False, False, True], [False, True, False, False]]
    assert not choose_patches(words, 0).any()


def inverse_block_slowly(centres, words, kept, length):
    """Blocks around patches, then single patches dropped or added: one mask, patch by patch."""
    block = np.zeros(GRID, dtype=bool)
    for centre in centres:
        row, column = divmod(int(centre), GRID[1])
        for i in range(length):
            for j in range(length):
                y = min(max(row + i - length // 2, 0), GRID[0] - 1)
                x = min(max(column + j - length // 2, 0), GRID[1] - 1)
                block[y, x] = True
    block = block.ravel()
    order = sorted(range(block.size), key=lambda n: (not block[n], words[n], n))
    hidden = np.ones(block.size, dtype=bool)
    hidden[order[:kept]] = False
    return hidden


@pytest.mark.parametrize("length", [2, 3, 4])
def test_inverse_blocks_are_the_official_ones(length):
    sampler = masks.InverseBlock(length=length)
    keys = Keys(0, EPOCHS, UIDS, np.arange(1))
    blocks = int(196 * (0.2 + 0.07) / length**2)
    centres = np.floor(keys.uniforms("masks/mine/centres", blocks)[0] * 196)
    words = keys.words("masks/mine", 196)[0]
    want = [inverse_block_slowly(c, w, 39, length) for c, w in zip(centres, words, strict=True)]
    np.testing.assert_array_equal(drawn(sampler, 1)[0], want)


RECIPE = """\
stream: {{batch_size: 8}}
views:
  global: {{count: 2, ops: [RandomResizedCrop: {{size: [224, 224]}}]}}
masks:
{masks}
"""


def built(*entries):
    text = RECIPE.format(masks="\n".join(f"  {entry}" for entry in entries))
    recipe = parse_recipe(text, path="test.yaml")
    return ImageDecider.of_recipe(recipe, list(recipe.views))


COUPLED = """\
stream: {batch_size: 8}
views:
  global: {count: 2, ops: [RandomResizedCrop: {size: [32, 32]}]}
masks:
  drop: {count: 2, patch_size: 2, sampler: {random: {mode: reference}}}
  blocks: {count: 2, patch_size: 2, sampler: {dinov2: {mode: reference}}}
  context: {patch_size: 2, sampler: {multiblock: {part: context, mode: reference}}}
  targets: {count: 4, patch_size: 2, sampler: {multiblock: {part: targets, mode: reference}}}
run: {executor: kornia}
"""


def test_ranks_of_a_pipeline_make_the_masks_of_one(packed):
    def made(step, world_size):
        found = {}
        for rank in range(world_size):
            recipe = parse_recipe(COUPLED)
            where = {"rank": rank, "world_size": world_size, "device": "cpu"}
            with sslpipe.load(recipe, shards=packed, **where) as pipe:
                batch = pipe.make_batch(pipe.load_share(step), step)
            for b, uid in enumerate(batch.uids.tolist()):
                found[uid] = {name: mask[:, b].tolist() for name, mask in batch.masks.items()}
        return found

    alone = made(3, 1)
    assert len(alone) == 8
    assert made(3, 2) == made(3, 4) == alone


CONTEXT = "context: {patch_size: 16, sampler: {multiblock: {part: context}}}"


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("random: {ratio: 1.0}", r"ratio = 1\.0 must lie in \(0, 1\)"),
        ("random: {ratio: 1.0e-17}", "hides 0 of 196"),
        ("simmim: {unit: 3}", "unit = 3 does not divide the grid of 14 x 14.*divisor"),
        ("simmim: {ratio: 0.99}", "hides 196 of 196.*change the settings of simmim"),
        ("centre: {fraction: 0.5}", r"leaves 3\.5 at each end"),
        ("blockwise: {patches: 196}", r"patches = 196 must lie in \(0, 196\)"),
        ("blockwise: {min_patches: 170}", "do not fit.*set min_patches to 169 or less"),
        ("blockwise: {max_patches: 3}", "max_patches = 3 is below min_patches = 16"),
        ("blockwise: {aspect: 3.0}", r"aspect = 3\.0 must lie in"),
        ("blockwise: {finish: never}", "finish.*'stop' or 'complete'"),
        ("ibot: {ratio: [0.3], spread: [0.4]}", "leaves"),
        ("ibot: {ratio: [0.3]}", "equally long"),
        ("dinov2: {ratio: [0.5, 0.1]}", "must rise"),
        ("dinov2: {probability: 0}", "probability = 0"),
        ("dinov2: {mode: batch}", "'per_sample' or 'reference'"),
        ("multiblock", "needs the setting 'part'"),
        ("multiblock: {part: targets}", "count = 1, but multiblock makes 4 .*; set it to 4"),
        ("multiblock: {part: context, scale: [0.01, 0.2]}", "min_keep = 10"),
        ("multiblock: {part: context, context_scale: [0.9, 1.1]}", "must rise within"),
        ("multiblock: {part: context, blocks: 0}", "blocks = 0"),
        ("inverse_block: {length: 15}", "no block of 15 x 15 patches"),
        ("inverse_block: {length: 1}", "length = 1 must be 2"),
        ("random_region: {density: 1}", r"density = 1\.0 must lie in \(0, 1\)"),
        ("random_region: {cells: 0}", "cells = 0"),
        ("random_region: {cells: 15}", "more than the 14 patches.*patch_size lower"),
    ],
)
def test_mistakes_are_named_with_their_line_before_any_data(sampler, message):
    with pytest.raises(RecipeError, match=rf"^test\.yaml:5: (.|\n)*({message})"):
        built(f"mine: {{patch_size: 16, sampler: {{{sampler}}}}}")


def test_parts_of_one_multiblock_must_agree():
    targets = "targets: {{count: 4, patch_size: {}, sampler: {{multiblock: {{part: targets{}}}}}}}"
    assert built(CONTEXT, targets.format(16, "")).masks["targets"].count == 4
    with pytest.raises(RecipeError, match=r"test\.yaml:6: masks\.targets and masks\.context"):
        built(CONTEXT, targets.format(16, ", mode: reference"))
    with pytest.raises(RecipeError, match="same settings and patch_size"):
        built(CONTEXT, targets.format(14, ""))


class Twice:
    """A sampler of a user: hides the first patch, makes two masks whatever the count."""

    def hidden(self, grid):
        return 1

    def draw(self, keys, place, stream, grid):
        return np.tile(np.arange(grid[0] * grid[1]) == 0, (2, len(keys.uids), 1))


def test_a_user_s_own_sampler_is_tried_too():
    own = "mine: {{count: {}, patch_size: 16, sampler: tests.masks.test_masks:Twice}}"
    assert built(own.format(2)).masks["mine"].hidden == 1
    with pytest.raises(RecipeError, match=r"count = 1, but .*Twice makes 2 masks per sample"):
        built(own.format(1))


def test_samplers_go_by_these_names():
    assert set(SAMPLERS) == {
        "bands", "blockwise", "centre", "dinov2", "ibot", "inverse_block", "multiblock", "random",
        "random_region", "running_cell", "simmim", "spans", "tube", "tube_blocks",
    }  # fmt: skip


def test_masks_alone_are_those_of_the_pipeline(packed, recipe):
    with sslpipe.load(recipe, shards=packed, device="cpu") as pipe:
        batch = next(iter(pipe))
    drawn = masks.draw_masks(
        RandomPatches(), grid=(4, 4), ids=batch.uids.numpy(), seed=0, epoch=0, name="random"
    )
    assert (drawn == batch.masks["random"].numpy()).all()


def test_masks_alone_are_of_each_id_and_epoch():
    def draw(ids, epoch=0):
        return masks.draw_masks(RandomPatches(), grid=(6, 5), ids=ids, epoch=epoch, count=2)

    whole = draw(range(8))
    assert whole.shape == (2, 8, 30)
    assert (whole.sum(2) == RandomPatches().hidden((6, 5))).all()
    assert (draw([5, 2])[:, 1] == whole[:, 2]).all()
    assert (draw(range(8), epoch=1) != whole).any()
    with pytest.raises(ValueError, match="does not divide"):
        masks.draw_masks(masks.SimMIMUnits(unit=4), grid=(6, 5), ids=range(2))
