"""Videos from shards to batches: the planned frames, one draw per clip, exact on any ranks."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.errors import RecipeError
from sslpipe.modalities.image.draws import draw
from sslpipe.modalities.image.executors import kornia
from sslpipe.modalities.parts import column_of, parts_of
from sslpipe.modalities.video.codec import VideoCodec
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Place
from sslpipe.shards import open_manifest, read_index
from sslpipe.shards.verification import verify
from sslpipe.stream.reader import Sample

from ...streaming import damage
from .films import SIDE, film, read

RECIPE = """
modality: video
stream: {batch_size: 8, seed: 3}
views:
  global:
    count: 2
    ops:
      - DenseClip: {frames: 4, stride: 3}
      - CenterCrop: {size: [32, 32]}
masks:
  tube: {patch_size: [2, 8, 8], sampler: {tube: {ratio: 0.75}}}
run: {workers: 0}
"""
COLOUR = """
modality: video
stream: {batch_size: 6}
views:
  global:
    count: 2
    ops:
      - IntervalClips: {frames: 5, stride: 2}
      - RandomResizedCrop: {size: [24, 24], scale: [0.3, 1.0]}
      - RandomHorizontalFlip: {p: 0.5}
      - ColorJitter: {brightness: 0.8, contrast: 0.8, saturation: 0.8, hue: 0.2, p: 0.8}
      - RandomGaussianBlur: {kernel_size: [3, 3], sigma: [0.1, 2.0], p: 0.5}
      - Normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
  local:
    ops:
      - UniformClip: {frames: 3, stride: 4}
      - RandomResizedCrop: {size: [16, 16], scale: [0.1, 0.3]}
run: {workers: 0}
"""


def load(shards, *overrides, text=RECIPE, rank=0, world_size=1):
    recipe = parse_recipe(text, path="video.yaml", overrides=overrides)
    return sslpipe.load(recipe, shards=shards, device="cpu", rank=rank, world_size=world_size)


def test_specs_are_known_before_any_data(videos):
    with load(videos) as pipe:
        view, mask = pipe.spec.views["global"], pipe.spec.masks["tube"]
    assert (view.count, view.axes, view.shape) == (2, "CTHW", (3, 4, 32, 32))
    assert view.columns == (
        "DenseClip.0", "DenseClip.1", "DenseClip.2", "DenseClip.3",
        *(f"CenterCrop.{c}" for c in ("x", "y", "w", "h")),
    )  # fmt: skip
    assert (mask.axes, mask.patch, mask.grid, mask.hidden) == ("THW", (2, 8, 8), (2, 4, 4), 24)


def test_views_show_the_frames_that_were_planned(videos):
    """Each frame shows its number: a square crop of 2 x 4 squares shows four of the 8 bits."""
    seen = set()
    with load(videos) as pipe:
        for batch in pipe:
            clips = batch.views["global"]
            assert clips.shape == (2, 8, 3, 4, 32, 32)
            numbers = batch.params["global"][..., :4].long()
            for v, b in np.ndindex(2, 8):
                grid = clips[v, b, 1][:, SIDE // 2 :: SIDE, SIDE // 2 :: SIDE] > 0.5
                for shown, number in zip(grid, numbers[v, b].tolist(), strict=True):
                    bits = [bool(number >> place & 1) for place in range(8)]
                    upright = np.array(bits).reshape(2, 4)[:, 1:3]
                    turned = np.rot90(np.array(bits).reshape(2, 4))[1:3]
                    assert (shown.numpy() == upright).all() or (shown.numpy() == turned).all()
                    seen.add(number)
    assert len(seen) > 40


def test_clips_are_what_the_executor_makes_of_each_frame_with_one_row(videos):
    with load(videos, "run.executor=kornia", text=COLOUR) as pipe:
        (part,) = pipe.parts
        share = pipe.load_share(2)
        batch = pipe.make_batch(share, 2)
        columns = share.columns[0]
    groups = part.decider.policies
    keys = {
        name: part.decider.keys(group, share.epochs, share.uids) for name, group in groups.items()
    }
    numbers = {name: group.numbers(keys[name], columns.extents) for name, group in groups.items()}
    shown = [
        sorted({*np.concatenate([n[:, b].ravel() for n in numbers.values()]).tolist()})
        for b in range(6)
    ]
    assert [len(array) for array in columns.arrays] == [len(each) for each in shown]
    for name, group in groups.items():
        table = draw(group.images, keys[name], columns.extents[:, 1:3])
        for v, b in np.ndindex(*table.shape[:2]):
            frames = [columns.arrays[b][shown[b].index(n)] for n in numbers[name][v, b].tolist()]
            rows = np.repeat(table[v : v + 1, b : b + 1], len(frames), axis=1)
            slow = kornia.execute(group.images, frames, rows, device=torch.device("cpu"))[0]
            torch.testing.assert_close(batch.views[name][v, b], slow.transpose(0, 1))
        told = batch.params[name][..., : numbers[name].shape[-1]]
        np.testing.assert_array_equal(told, numbers[name])
    assert batch.views["global"].shape == (2, 6, 3, 5, 24, 24)
    assert batch.views["local"].shape == (1, 6, 3, 3, 16, 16)


def test_the_fast_executor_agrees_with_the_reference(videos):
    made = []
    for executor in ("kornia", "cpu"):
        with load(videos, f"run.executor={executor}", text=COLOUR) as pipe:
            made.append(next(iter(pipe)).views["global"])
    assert (made[0] - made[1]).abs().max() < 2 * 0.2 / 255 / 0.5


def test_ops_that_are_named_are_drawn_for_each_frame(videos):
    each = "stride: 2, per_frame: [ColorJitter, RandomHorizontalFlip]}"
    with load(videos, text=COLOUR.replace("stride: 2}", each)) as pipe:
        (part,) = pipe.parts
        batch = next(iter(pipe))
        policy = part.decider.policies["global"]
    rows = policy.rows_of(batch.params["global"].numpy())
    names = policy.images.columns
    for place, name in enumerate(names):
        alike = (rows[:, :, :1, place] == rows[:, :, :, place]).all()
        drawn = name.startswith(("ColorJitter", "RandomHorizontalFlip"))
        assert alike != drawn, name
    assert len(pipe.spec.views["global"].columns) == batch.params["global"].shape[-1]
    with load(videos, text=COLOUR) as plain:
        first = next(iter(plain)).params["global"]
    # what is drawn once, and for the first frame, stays as it was
    assert (first == batch.params["global"][..., : first.shape[-1]]).all()


def trace(batches):
    return [
        {
            int(uid): (
                batch.params["global"][:, b].numpy().tobytes(),
                batch.masks["tube"][:, b].numpy().tobytes(),
                batch.views["global"][:, b].contiguous().numpy().tobytes(),
            )
            for b, uid in enumerate(batch.uids)
        }
        for batch in batches
    ]


def test_a_stream_goes_on_exactly_on_other_numbers_of_ranks(videos):
    with load(videos, "stream.batch_size=6") as pipe:
        whole = trace([*pipe, *pipe])
    assert len(whole) == 8
    with load(videos, "stream.batch_size=6") as pipe:
        got = trace(itertools.islice(pipe, 3))
        state = pipe.state_dict()
    assert got == whole[:3]
    for ranks in (1, 2, 3):
        merged = [{} for _ in range(5)]
        for rank in range(ranks):
            with load(videos, "stream.batch_size=6", rank=rank, world_size=ranks) as pipe:
                pipe.load_state_dict(json.loads(json.dumps(state)))
                for place, part in enumerate(trace([*pipe, *pipe])[:5]):
                    merged[place] |= part
        assert merged == whole[3:8]


def test_workers_decode_into_the_arena(videos):
    with load(videos, "run.workers=2") as pipe:
        mine = trace(pipe)
    with load(videos) as pipe:
        assert trace(pipe) == mine


def test_a_set_is_verified_and_its_index_knows_it(videos):
    manifest = open_manifest(videos)
    assert verify(manifest, codec=VideoCodec()) == []
    extents = np.concatenate(
        [read_index(manifest.root / shard.file).samples["extent"] for shard in manifest.shards]
    )
    assert sorted(extents[:, 0].tolist()) == [5 + 4 * n for n in range(24)]
    assert {tuple(sides) for sides in extents[:, 1:3].tolist()} == {(32, 64), (64, 32)}


DENSE = "DenseClip: {frames: 4, stride: 3}"
REFUSED = {
    "an op of images first": (
        f"- {DENSE}",
        "- Normalize: {mean: [0, 0, 0], std: [1, 1, 1]}",
        "Normalize stands first; views.global.ops of video begin with what frames a clip has",
    ),
    "no such setting": (DENSE, "DenseClip: {frame: 4}", "has no setting 'frame'; did you mean 'fr"),
    "no such op": (
        DENSE,
        "DenseClip: {frames: 4, per_frame: [Colour]}",
        "per_frame names 'Colour', which is no op of views.global; its ops are CenterCrop",
    ),
    "no crop": ("- CenterCrop: {size: [32, 32]}", "", "views.global.ops is empty"),
    "patches": ("[2, 8, 8]", "[3, 8, 8]", r"patch_size = \[3, 8, 8\] does not divide"),
    "a device": ("run:", "decode: {device: cuda}\nrun:", "videos are decoded on the CPU"),
    "a task": ("run:", "targets: {r: {task: rotation}}\nrun:", "rotation is a task for images"),
    "an interval of one": (
        f"count: 2\n    ops:\n      - {DENSE}",
        "count: 1\n    ops:\n      - IntervalClips: {frames: 4}",
        r"video.yaml:\d+: IntervalClips: it makes two clips, and the group makes 1; set its count",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_recipes_that_cannot_run_say_why(videos, name):
    before, after, words = REFUSED[name]
    assert before in RECIPE
    with pytest.raises(RecipeError, match=words):
        load(videos, text=RECIPE.replace(before, after))


def test_evaluation_shows_the_middle_of_clips_and_pictures(videos):
    from sslpipe.modalities.video import MODALITY

    recipe = parse_recipe(COLOUR, path="video.yaml")
    (view,) = MODALITY.evaluation_views(recipe).values()
    assert [op.name for op in view.ops] == ["CentralClip", "CenterCrop", "Normalize"]
    assert view.ops[0].settings == {"frames": 5, "stride": 2}
    assert view.count == 1
    again = recipe.model_copy(update={"views": {"global": view}})
    assert MODALITY.evaluation_views(again)["global"].ops[0] == view.ops[0]
    changed = recipe.model_copy(update={"views": {"global": view}})
    with sslpipe.load(changed, shards=videos, device="cpu", rank=0, world_size=1) as pipe:
        batch = next(iter(pipe))
    lengths = batch.params["global"][0, :, :5].long()
    assert (lengths.diff(dim=1) <= 2).all()
    assert batch.views["global"].shape == (1, 6, 3, 5, 24, 24)


def test_a_bad_video_is_a_black_stand_in_where_the_recipe_says_so(videos, tmp_path):
    folder = shutil.copytree(videos, tmp_path / "copy")
    uid = damage(folder, 0, 0)
    with load(folder, "stream.on_bad=mask", "stream.max_bad_fraction=0.5") as pipe:
        bad = [
            batch.views["global"][:, b]
            for batch in pipe
            for b in np.flatnonzero(~batch.valid.numpy())
        ]
    assert bad
    for clips in bad:
        assert clips.shape == (2, 3, 4, 32, 32)
        assert not clips.any()
    with load(folder, "stream.max_bad_fraction=0.5") as pipe:  # by default another one instead
        assert all(uid not in batch.uids for batch in pipe)


def test_videos_that_no_index_knows_are_measured_when_they_come():
    """An iterable's samples, and those of an index that was made without looking."""
    (part,) = parts_of(
        parse_recipe(RECIPE, path="video.yaml"), device=torch.device("cpu"), threads=None
    )
    sample = Sample(uid=5, key="a", label=-1, data=film(40))
    raw = part.load(sample, 0)
    numbers = sorted({*read(raw.data)})
    assert raw.extent == (40, 32, 64, 16_000)
    assert len(raw.data) == len(numbers) <= 8
    ids, extents = np.array([5]), np.array([raw.extent])
    told = part.decider.instructions(epochs=0 * ids, uids=ids, extents=0 * extents)
    assert (told == -1).all()
    every = part.decode(sample, told[0].tolist())
    tables = part.decider.decide(
        epochs=0 * ids, uids=ids, place=Place(0, 0 * ids, 1), extents=extents
    )
    few, many = (
        part.maker.make(column_of([each]).arrays, tables, {}).views["global"]
        for each in (raw, every)
    )
    assert len(every.data) == 40
    torch.testing.assert_close(few, many, rtol=0, atol=0)
    listed = part.maker.make([torch.from_numpy(raw.data)], tables, {}).views["global"]
    torch.testing.assert_close(few, listed, rtol=0, atol=0)
