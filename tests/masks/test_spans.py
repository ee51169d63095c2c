"""wav2vec 2.0's spans: fairseq's statistics, whole runs, exact counts; AudioMAE's bands."""

import numpy as np
import pytest

from sslpipe.errors import RecipeError
from sslpipe.masks import SAMPLERS
from sslpipe.masks.spans import Bands, Spans
from sslpipe.modalities.audio.decider import AudioDecider
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Keys, Place

# of compute_mask_indices((1, T), None, 0.65, 10, "static", min_masks=2): starts, share, mean run
OFFICIAL = {
    100: ((6, 7), 0.499, 14.3), 200: ((13, 13), 0.495, 14.5), 300: ((19, 20), 0.492, 14.6),
    400: ((26, 26), 0.492, 14.7), 500: ((32, 33), 0.492, 14.7),
}  # fmt: skip


def drawn(sampler, grid, rows=3000):
    uids = np.arange(rows, dtype=np.int64) * 7919
    keys = Keys(3, np.zeros(rows, dtype=np.int64), uids, np.arange(1))
    return sampler.draw(keys, Place(0, np.arange(rows), rows), "masks/spans", grid)[0]


def runs(hidden_BT):
    """Lengths of all runs of hidden steps."""
    edges = np.diff(np.pad(hidden_BT.astype(int), ((0, 0), (1, 1))), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


@pytest.mark.parametrize("steps", OFFICIAL)
def test_free_counts_are_those_of_single_rows_of_fairseq(steps):
    sampler, (spans, share, mean_run) = Spans(counts="free"), OFFICIAL[steps]
    hidden_BT = drawn(sampler, (steps,))
    assert sampler.hidden((steps,)) is None
    assert abs(hidden_BT.mean() - share) < 0.01
    assert abs(runs(hidden_BT).mean() - mean_run) < 0.3
    assert runs(hidden_BT).min() == 10
    assert not hidden_BT[:, -1].any()
    assert abs(hidden_BT[:, 0].mean() - 0.07) < 0.02
    assert hidden_BT.sum(1).max() <= 10 * spans[1]


@pytest.mark.parametrize("steps", [49, *OFFICIAL, 781])
def test_equal_counts_hide_whole_spans(steps):
    sampler, share = Spans(), OFFICIAL.get(steps, (0, 0.49 if steps > 49 else 0.508))[1]
    hidden_BT = drawn(sampler, (steps,), rows=1500)
    assert set(hidden_BT.sum(1)) == {sampler.hidden((steps,))}
    assert abs(hidden_BT.mean() - share) < 0.01
    assert not hidden_BT[:, -1].any()
    found = runs(hidden_BT)
    assert np.mean(found < 10) < 1e-3  # those where no span adds exactly what was left
    assert abs(hidden_BT[:, 0].mean() - 0.07) < 0.03


def test_the_mean_is_the_mean():
    for steps in (49, 130):
        share = drawn(Spans(counts="free"), (steps,), rows=20_000).mean()
        assert abs(share - Spans().mean(steps) / steps) < 0.002


def test_short_spans_and_a_last_one_that_must_be_cut():
    """Of 12 steps with spans of 4, many masks have no span left that fits exactly."""
    sampler = Spans(mask_length=4, mask_prob=0.9)
    hidden_BT = drawn(sampler, (12,))
    assert set(hidden_BT.sum(1)) == {sampler.hidden((12,))}


def test_grids_that_do_not_suit_are_refused():
    with pytest.raises(ValueError, match="2 to mask; use bands"):
        Spans().hidden((8, 64))
    with pytest.raises(ValueError, match="find no room in 12"):
        Spans().hidden((12,))
    with pytest.raises(ValueError, match="use spans"):
        Bands().hidden((49,))
    with pytest.raises(ValueError, match=r"mask_prob = 1.5 must lie in \(0, 1\)"):
        Spans(mask_prob=1.5)
    assert SAMPLERS["spans"] is Spans


def test_bands_hide_whole_rows_and_columns():
    hidden_BFT = drawn(Bands(), (8, 64), rows=200).reshape(200, 8, 64)
    assert set(hidden_BFT.sum((1, 2))) == {8 * 64 - 5 * 19}
    shown_BFT = ~hidden_BFT
    assert (shown_BFT == shown_BFT.any(2, keepdims=True) & shown_BFT.any(1, keepdims=True)).all()
    assert len({row.tobytes() for row in hidden_BFT}) == 200


FRAMES = """
modality: audio
stream: {batch_size: 2}
views: {wave: {ops: [Crop: {samples: SAMPLES, rate: 16000}]}}
masks: {spans: {view: wave, patch_size: 320, receptive_field: 400, sampler: spans}}
"""


@pytest.mark.parametrize(
    ("samples", "frames"), [(16_000, 49), (160_000, 499), (250_000, 781), (320_000, 999)]
)
def test_frames_are_those_of_unpadded_convolutions(samples, frames):
    recipe = parse_recipe(FRAMES.replace("SAMPLES", str(samples)), path="t.yaml")
    spec = AudioDecider(recipe, ["wave"]).masks["spans"]
    assert (spec.grid, spec.patch, spec.axes) == ((frames,), (320,), "T")
    steps = samples  # wav2vec 2.0's kernels and strides, one after another
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        steps = (steps - kernel) // stride + 1
    assert steps == frames


def test_a_field_that_does_not_fit_is_refused():
    recipe = parse_recipe(FRAMES.replace("SAMPLES", "399"), path="t.yaml")
    with pytest.raises(RecipeError, match=r"t.yaml:5.*receptive_field = 400 is more than views"):
        AudioDecider(recipe, ["wave"])


def test_a_sample_without_a_real_frame_hides_nothing():
    """It is one that was bad and is masked (`stream.on_bad: mask`)."""
    keys = Keys(0, np.zeros(4, dtype=np.int64), np.arange(4), np.arange(1))
    hidden_MBT = Spans(counts="real").draw_within(keys, "x", (99,), np.array([0, 1, 2, 99]))
    assert hidden_MBT.sum(-1)[0, :3].tolist() == [0, 0, 1]
    assert not hidden_MBT[0, 2, 2:].any()
