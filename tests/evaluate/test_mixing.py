"""Mixup and CutMix: decided by key, the right distributions, exact boxes, independent of order."""

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from sslpipe.evaluate.mixing import (
    Mixing,
    decide_mixes,
    mix_images,
    mix_labels,
    soft_targets,
)

UIDS = np.random.default_rng(0).integers(-(2**62), 2**62, 4000)


def decided(mixing=None, uids=UIDS, *, seed=0, epoch=3, height=24, width=32):
    return decide_mixes(
        mixing or Mixing(), uids, seed=seed, epoch=epoch, height=height, width=width
    )


def area(mixes):
    top, bottom, left, right = mixes.boxes.T
    return (bottom - top) * (right - left)


def test_mixups_lambda_is_of_its_beta_distribution():
    mixes = decided(Mixing(mixup=0.8, cutmix=0.0))
    assert not mixes.cut.any()
    assert not area(mixes).any()
    assert stats.kstest(mixes.kept, stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    assert mixes.kept.mean() == pytest.approx(0.5, abs=0.02)
    # the variance tells 0.8 from 1.0: 1 / (4 (2 alpha + 1))
    assert mixes.kept.var() == pytest.approx(1 / (4 * 2.6), abs=0.003)


def test_half_is_cutmix_whose_lambda_is_the_share_of_pixels_exactly():
    mixes = decided()
    assert mixes.cut.mean() == pytest.approx(0.5, abs=0.03)
    cut = mixes.cut
    assert (mixes.kept[cut] == 1 - area(mixes)[cut] / (24 * 32)).all()
    assert not area(mixes)[~cut].any()
    ends = mixes.boxes[cut]
    assert ends.min() == 0
    assert ends[:, 1].max() == 24
    assert ends[:, 3].max() == 32
    images = torch.arange(len(cut), dtype=torch.float32)[:, None, None, None].expand(-1, 3, 24, 32)
    made = mix_images(images, mixes)
    own = (made == images).double().mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(own[cut], mixes.kept[cut], atol=1e-12)


def test_boxes_are_timms_before_the_clip():
    """Their sides are those of timm's rand_bbox: half of int(side * sqrt(1 - lambda)) each way."""
    mixes = decided(Mixing(mixup=0.0), height=1001, width=1001)
    top, bottom, left, right = mixes.boxes.T
    inside = (top > 0) & (bottom < 1001) & (left > 0) & (right < 1001)
    assert inside.sum() > 500
    assert ((bottom - top) == (right - left))[inside].all()
    assert ((bottom - top)[inside] % 2 == 0).all()


def test_partners_are_a_cycle_and_never_oneself():
    mixes = decided(uids=UIDS[:50])
    seen, place = [], 0
    for _ in range(50):
        seen.append(place)
        place = int(mixes.partners[place])
    assert place == 0
    assert sorted(seen) == list(range(50))
    again = decided(uids=UIDS[:50], epoch=4)
    assert (again.partners != mixes.partners).mean() > 0.8


def test_the_order_of_a_batch_changes_nothing():
    order = np.random.default_rng(1).permutation(len(UIDS))
    one, other = decided(), decided(uids=UIDS[order])
    assert (other.kept == one.kept[order]).all()
    assert (other.boxes == one.boxes[order]).all()
    assert (UIDS[order][other.partners] == UIDS[one.partners][order]).all()


def test_ranks_that_mix_their_shares_keep_lambdas_and_boxes():
    whole, half = decided(), decided(uids=UIDS[1::2])
    assert (half.kept == whole.kept[1::2]).all()
    assert (half.boxes == whole.boxes[1::2]).all()
    assert set(UIDS[1::2][half.partners]) == set(UIDS[1::2])


def test_seed_and_epoch_decide():
    base = decided()
    for other in (decided(seed=1), decided(epoch=4)):
        assert (other.kept != base.kept).mean() > 0.9
    assert (decided().kept == base.kept).all()


def test_images_and_labels_are_mixed_as_a_loop_would():
    uids = UIDS[:12]
    mixes = decided(uids=uids, height=8, width=10)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 8, 10, generator=generator)
    labels = torch.arange(12) % 5
    made = mix_images(images, mixes)
    targets = mix_labels(labels, mixes, classes=5, smoothing=0.1)
    for b in range(12):
        partner, kept = int(mixes.partners[b]), float(mixes.kept[b])
        expected = images[b].clone()
        if mixes.cut[b]:
            top, bottom, left, right = mixes.boxes[b]
            expected[:, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        else:
            expected = kept * images[b] + (1 - kept) * images[partner]
        torch.testing.assert_close(made[b], expected)
        pair = mixup_target(labels[[b, partner]], 5, kept, smoothing=0.1)[0]
        other = mixup_target(labels[[partner, b]], 5, 1 - kept, smoothing=0.1)[0]
        torch.testing.assert_close(pair, other)  # timm pairs with the reverse of the batch
        torch.testing.assert_close(targets[b], pair)
    torch.testing.assert_close(targets.sum(1), torch.ones(12))


def test_cross_entropy_of_soft_targets_is_timms():
    scores = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    targets = soft_targets(torch.arange(12) % 5, classes=5, smoothing=0.1)
    expected = SoftTargetCrossEntropy()(scores, targets)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(scores, targets), expected)


def test_a_batch_of_one_is_its_own_partner():
    mixes = decided(uids=UIDS[:1])
    images = torch.rand(1, 3, 24, 32)
    torch.testing.assert_close(mix_images(images, mixes), images)
