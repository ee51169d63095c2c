"""Which frames clips have: slow transcriptions of the official samplings, tables, distributions."""

import re

import numpy as np
import pytest

import sslpipe
from sslpipe.modalities.video import clips
from sslpipe.modalities.video.clips import (
    CentralClip,
    DenseClip,
    IntervalClips,
    PartitionedClips,
    ShuffledClip,
    UniformClip,
)
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Keys

from .test_pipeline import RECIPE

STREAM = "views/global/Clip"


def keys(size, views=1, epoch=0):
    return Keys(0, np.full(size, epoch), np.arange(size), np.arange(views))


def drawn(sampling, lengths, rates=None, *, views=1, epoch=0):
    """(V, B, T), one sample for each length."""
    lengths = np.asarray(lengths)
    rates = np.zeros(len(lengths)) if rates is None else np.asarray(rates, dtype=float)
    numbers = sampling.draw(keys(len(lengths), views, epoch), STREAM, lengths, rates)
    assert numbers.shape == (views, len(lengths), sampling.frames)
    assert numbers.dtype == np.int64
    assert ((numbers >= 0) & (numbers < lengths[:, None])).all()
    return numbers


def uniforms(count, size, views=1):
    return keys(size, views).uniforms(STREAM, count)


LENGTHS = [1, 2, 8, 9, 10, 15, 16, 17, 40, 63, 64, 65, 100, 300, 301]


def videomae(u, length, frames, stride):
    """`_sample_train_indices` and the loop after it, from a given uniform."""
    room = length - frames * stride + 1
    offset = 1 + (int(u * room) if room > 0 else 0)
    numbers = []
    for _ in range(frames):
        numbers.append(offset - 1)
        if offset + stride < length:
            offset += stride
    return numbers


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_dense_clips_are_those_of_videomae(stride):
    numbers = drawn(DenseClip(frames=16, stride=stride), LENGTHS)[0]
    u_B = uniforms(1, len(LENGTHS))[0, :, 0]
    slow = [videomae(u, length, 16, stride) for u, length in zip(u_B, LENGTHS, strict=True)]
    np.testing.assert_array_equal(numbers, slow)


def test_a_short_video_repeats_the_last_stride_that_is_reached():
    ten, nine = drawn(DenseClip(frames=16, stride=4), [10, 9])[0]
    assert ten.tolist() == [0, 4] + [8] * 14
    assert nine.tolist() == [0] + [4] * 15  # the official code counts from 1


def test_dense_clips_start_anywhere_alike_often():
    starts = drawn(DenseClip(frames=16, stride=4), [300] * 23_700)[0, :, 0]
    counts = np.bincount(starts, minlength=237)
    assert len(counts) == 237
    assert abs(counts - 100).max() < 50  # 5 sigma
    assert set(drawn(DenseClip(frames=16, stride=4), [64] * 50)[0, :, 0]) == {0}


def slowfast(u, length, span, frames):
    """`get_start_end_idx` and `temporal_sampling` from a given uniform."""
    start = u * max(length - span, 0)
    index = np.linspace(start, start + span - 1, frames)
    return np.clip(index, 0, length - 1).astype(np.int64)


def test_uniform_clips_are_those_of_slowfast():
    u_B = uniforms(1, len(LENGTHS))[0, :, 0]
    slow = [slowfast(u, length, 8 * 4, 8) for u, length in zip(u_B, LENGTHS, strict=True)]
    numbers = drawn(UniformClip(frames=8, stride=4), LENGTHS)[0]
    np.testing.assert_array_equal(numbers, slow)
    rates = np.linspace(10, 60, len(LENGTHS))
    slow = [
        slowfast(u, length, max(8 * 4 / 30 * rate, 1), 8)
        for u, length, rate in zip(u_B, LENGTHS, rates, strict=True)
    ]
    numbers = drawn(UniformClip(frames=8, stride=4, rate=30.0), LENGTHS, rates)[0]
    np.testing.assert_array_equal(numbers, slow)


def test_clips_keep_the_gaps_that_are_asked_for_where_there_is_room():
    sampling = UniformClip(frames=8, stride=2, gap=(10, 60))
    numbers = drawn(sampling, [300] * 200 + [40] * 20, views=2)
    starts = np.sort(numbers[..., 0], axis=0)
    apart = starts[1] - starts[0] - 15  # from the end of a clip; rounded down twice
    assert ((apart[:200] >= 9) & (apart[:200] <= 61)).all()
    assert (numbers[0, :200, 0] > numbers[1, :200, 0]).any()  # either may come first
    # 40 frames have room for a gap of 8 at most: the draw that comes closest is taken
    assert (apart[200:] >= 3).all()
    free = drawn(UniformClip(frames=8, stride=2), [300] * 200, views=2)
    spread = np.abs(free[0, :, 0] - free[1, :, 0])
    assert (spread < 15).any()
    assert (spread > 80).any()


def vjepa(u, length, fps, frames, clips, part):
    """`loadvideo_decord` with frames per second 4, a random window, clips that do not overlap."""
    step = max(int(np.ceil(fps)) // 4, 1)
    clip, partition = frames * step, length // clips
    if partition > clip:
        start = int(u * (partition - clip))  # randint(clip, partition) - clip
        index = np.linspace(start, start + clip, num=frames)
        index = np.clip(index, start, start + clip - 1).astype(np.int64)
    else:
        index = np.linspace(0, partition, num=partition // step)
        index = np.concatenate([index, np.ones(frames - partition // step) * partition])
        index = np.clip(index, 0, max(partition - 1, 0)).astype(np.int64)
    return index + part * partition


@pytest.mark.parametrize("parts", [1, 2])
def test_partitioned_clips_are_those_of_v_jepa(parts):
    lengths = np.array([n for n in LENGTHS if n >= parts])
    rates = np.linspace(5, 31, len(lengths))
    numbers = drawn(PartitionedClips(frames=16), lengths, rates, views=parts)
    u_VB = uniforms(1, len(lengths), parts)[..., 0]
    for part in range(parts):
        slow = [
            vjepa(u, length, rate, 16, parts, part)
            for u, length, rate in zip(u_VB[part], lengths, rates, strict=True)
        ]
        np.testing.assert_array_equal(numbers[part], slow)


def test_partitions_of_videos_without_a_rate_go_by_the_stride():
    numbers = drawn(PartitionedClips(frames=4, stride=3), [200])[0, 0]
    assert (np.diff(numbers) >= 3).all()
    assert numbers[-1] - numbers[0] <= 12


def cvrl(u, length, frames, stride):
    """`sample_ssl_sequence` from four given uniforms: interval by bisection, starts, order."""
    most = length - (frames - 1) * stride if length > (frames - 1) * stride else length
    low, high, k = 0, most, most // 2
    while abs(high - low) > 1:
        if 2 * k / most - (k / most) ** 2 > u[0]:
            high = k
        else:
            low = k
        k = (low + high) // 2
    if most == length:
        starts = int(u[1] * most), int(u[2] * most)
    else:
        first = int(u[1] * (most - k))
        starts = first, first + k
    starts = starts[::-1] if u[3] < 0.5 else starts
    return [[(start + stride * i) % length for i in range(frames)] for start in starts]


def test_intervals_are_those_of_cvrl():
    lengths = LENGTHS * 20
    numbers = drawn(IntervalClips(frames=16, stride=2), lengths, views=2)
    u_B4 = uniforms(4, len(lengths))[0]
    slow = [cvrl(u, length, 16, 2) for u, length in zip(u_B4, lengths, strict=True)]
    np.testing.assert_array_equal(numbers.swapaxes(0, 1), slow)


def test_intervals_have_the_published_distribution():
    length, starts = 330, 300
    numbers = drawn(IntervalClips(frames=16, stride=2), [length] * 40_000, views=2)
    interval = np.abs(numbers[1, :, 0] - numbers[0, :, 0])
    shares = [(interval < x * starts).mean() for x in (0.1, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(shares, [0.19, 0.4375, 0.75, 0.9375], atol=0.01)
    assert interval.mean() == pytest.approx(starts / 3, rel=0.02)
    assert (numbers[0, :, 0] < numbers[1, :, 0]).mean() == pytest.approx(0.5, abs=0.01)


def test_central_clips_lie_in_the_middle():
    made = drawn(CentralClip(frames=4, stride=3), [100, 10, 5, 1], views=2)
    assert made[0].tolist() == [[45, 48, 51, 54], [0, 3, 6, 9], [0, 3, 4, 4], [0, 0, 0, 0]]
    assert (made[0] == made[1]).all()


def test_shuffled_clips_have_the_central_frames_in_orders_of_their_own():
    lengths = [100] * 600
    plain, shuffled = (
        drawn(kind(frames=4, stride=3), lengths)[0] for kind in (CentralClip, ShuffledClip)
    )
    np.testing.assert_array_equal(np.sort(shuffled), plain)
    assert len(np.unique(shuffled, axis=0)) == 24
    assert (shuffled[:, 0] == plain[:, 0]).mean() == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("kind", [DenseClip, UniformClip, PartitionedClips, IntervalClips])
def test_a_clip_depends_on_its_sample_alone_and_changes_with_the_epoch(kind):
    sampling = kind(frames=8, stride=2)
    lengths = np.array([200, 90, 300, 150])
    many = drawn(sampling, lengths, views=2)
    alone = sampling.draw(
        Keys(0, np.zeros(1, dtype=np.int64), np.array([2]), np.arange(2)),
        STREAM,
        lengths[2:3],
        np.zeros(1),
    )
    np.testing.assert_array_equal(alone[:, 0], many[:, 2])
    assert (drawn(sampling, lengths, views=2, epoch=1) != many).any()


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (DenseClip, {"frames": 0}, "frames = 0"),
        (DenseClip, {"frames": 2**40}, "frames = 1,099,511,627,776 must be 1 to 65,536"),
        (CentralClip, {"frames": 4, "stride": 65_537}, "stride = 65,537 must be 1 to 65,536"),
        (UniformClip, {"frames": 4, "gap": (9, 3)}, r"gap = \[9, 3\] must rise"),
        (UniformClip, {"frames": 4, "rate": 0.0}, "rate = 0.0 must be above 0"),
        (PartitionedClips, {"frames": 4, "rate": 0}, "rate = 0 must be 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind, settings, words):
    with pytest.raises(ValueError, match=words):
        kind(**settings)


def test_the_example_of_a_sampling_runs_as_it_stands(videos, write_module):
    (block,) = re.findall(r"```py\n(.*?)```", clips.__doc__, re.DOTALL)
    write_module("mine", block)
    text = RECIPE.replace("DenseClip: {frames: 4, stride: 3}", '"mine:Ends": {frames: 4}')
    recipe = parse_recipe(text)
    with sslpipe.load(recipe, shards=videos, device="cpu", rank=0, world_size=1) as pipe:
        batch = next(iter(pipe))
        lengths = pipe.load_share(0).columns[0].extents[:, 0]
    numbers = batch.params["global"][..., :4].long().numpy()
    first = (numbers == np.arange(4)).all(-1)
    last = (numbers == lengths[:, None] - 4 + np.arange(4)).all(-1)
    assert (first ^ last).all()
    assert first.any()
    assert last.any()
