"""Draws: keyed by the sample alone, and distributed as torchvision's and the papers' are.

False alarms: seeds are fixed, so a test that passes keeps passing. With another seed each of 50
comparisons fails at p < 1e-4 (KS at 2.23: 9.6e-5; a rate off by 4 sigma: 6.3e-5; chi-square 60 at
23 degrees of freedom: 3.8e-5), so any of them at p < 0.005.
"""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomErasing, RandomResizedCrop

from sslpipe.errors import RecipeError
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.recipe.names import Entry

CROP = Entry("RandomResizedCrop", {"size": [32, 32]})
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8}
SIMCLR = [
    CROP,
    Entry("RandomHorizontalFlip", {"p": 0.5}),
    Entry("ColorJitter", JITTER),
    Entry("RandomGrayscale", {"p": 0.2}),
    Entry("RandomGaussianBlur", {"kernel_size": [9, 9], "sigma": [0.1, 2.0], "p": [1.0, 0.1]}),
    Entry("RandomSolarize", {"p": [0.0, 0.2]}),
    Entry("Normalize"),
]  # fmt: skip


def table(entries=SIMCLR, *, uids, epochs=0, count=2, seed=0, shared=False, size=(375, 500)):
    group = policy("global", entries, count=count, shared=shared)
    uids = np.asarray(uids, dtype=np.int64)
    keys = group_keys(group, seed=seed, epochs=np.full(len(uids), epochs), uids=uids)
    drawn = draw(group, keys, np.tile(np.array(size), (len(uids), 1)))
    return drawn, {name: drawn[..., i] for i, name in enumerate(group.columns)}


def test_a_samples_draws_do_not_depend_on_its_neighbours():
    uids = np.arange(100, 164)
    whole, _ = table(uids=uids)
    order = np.random.default_rng(0).permutation(64)
    assert (table(uids=uids[order])[0] == whole[:, order]).all()
    assert (table(uids=uids[10:13])[0] == whole[:, 10:13]).all()
    assert (table(uids=[uids[5]])[0] == whole[:, 5:6]).all()


def test_an_op_inserted_or_removed_changes_no_other_draw():
    uids = np.arange(64)
    _, plain = table(uids=uids)
    inserted = [*SIMCLR[:2], Entry("RandomVerticalFlip"), *SIMCLR[2:]]
    removed = [SIMCLR[0], *SIMCLR[3:]]
    for entries in (inserted, removed):
        for name, values in table(entries, uids=uids)[1].items():
            if name in plain:
                assert (values == plain[name]).all(), name


def test_the_same_op_twice_draws_twice():
    twice = [CROP, Entry("RandomHorizontalFlip"), Entry("RandomHorizontalFlip")]
    _, columns = table(twice, uids=np.arange(200))
    first, second = columns["RandomHorizontalFlip.on"], columns["RandomHorizontalFlip#2.on"]
    assert 0.4 < (first == second).mean() < 0.6


def test_views_epochs_and_seeds_differ_and_shared_views_do_not():
    uids = np.arange(64)
    base, columns = table(uids=uids)
    assert (columns["RandomResizedCrop.x"][0] != columns["RandomResizedCrop.x"][1]).mean() > 0.9
    assert (table(uids=uids, epochs=1)[0] != base).any(-1).mean() > 0.99
    assert (table(uids=uids, seed=1)[0] != base).any(-1).mean() > 0.99
    shared, _ = table([CROP, SIMCLR[2]], uids=uids, shared=True)
    assert (shared[0] == shared[1]).all()


def ks_distance(a, b):
    """Two-sample Kolmogorov-Smirnov statistic."""
    grid = np.sort(np.concatenate([a, b]))
    rank = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    return np.abs(rank[0] - rank[1]).max()


@pytest.mark.parametrize("size", [(375, 500), (32, 32), (40, 400)])
def test_boxes_are_distributed_as_torchvisions(size):
    count = 6000
    _, columns = table([CROP], uids=np.arange(count), count=1, size=size)
    x, y, w, h = (columns[f"RandomResizedCrop.{c}"][0].astype(int) for c in "xywh")
    assert (x >= 0).all() and (y >= 0).all()  # noqa: PT018
    assert (x + w <= size[1]).all() and (y + h <= size[0]).all()  # noqa: PT018
    image = torch.empty(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([
            RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)
        ])  # fmt: skip
    bound = 2.23 * np.sqrt(2 / count)  # KS at p = 1e-4
    their_y, their_x, their_h, their_w = theirs.T
    for ours, want in (
        (x, their_x), (y, their_y), (w, their_w), (h, their_h), (w * h, their_w * their_h),
        (w / h, their_w / their_h),
    ):  # fmt: skip
        assert ks_distance(ours, want) < bound


@pytest.mark.parametrize("size", [(224, 224), (32, 96)])
def test_erased_boxes_are_distributed_as_torchvisions(size):
    count = 6000
    _, columns = table(
        [Entry("Resize", {"size": size}), Entry("RandomErasing")], uids=np.arange(count), count=1
    )
    x, y, w, h = (columns[f"RandomErasing.{c}"][0] for c in "xywh")
    image = torch.empty(3, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([
            RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0])[:4] for _ in range(count)
        ])  # fmt: skip
    their_y, their_x, their_h, their_w = theirs.T
    failed = their_w == size[1]  # their way of saying that no box was found
    assert abs((w == 0).mean() - failed.mean()) < 0.01
    found, kept = w > 0, ~failed
    assert ((h < size[0]) & (w < size[1]) & (x + w <= size[1]) & (y + h <= size[0])).all()
    bound = 2.23 * np.sqrt(2 / kept.sum())  # KS at p = 1e-4
    for ours, want in (
        (x, their_x), (y, their_y), (w, their_w), (h, their_h), (w * h, their_w * their_h),
    ):  # fmt: skip
        assert ks_distance(ours[found], want[kept]) < bound
    assert ks_distance(h[found] / w[found], their_h[kept] / their_w[kept]) < bound


def test_gates_factors_and_orders_follow_the_recipe():
    count = 20_000
    _, c = table(uids=np.arange(count))
    for name, want in (
        ("RandomHorizontalFlip.on", [0.5, 0.5]),
        ("ColorJitter.on", [0.8, 0.8]),
        ("RandomGrayscale.on", [0.2, 0.2]),
        ("RandomGaussianBlur.on", [1.0, 0.1]),
        ("RandomSolarize.on", [0.0, 0.2]),
    ):
        for rate, p in zip(c[name].mean(1), want, strict=True):
            assert abs(rate - p) <= 4 * np.sqrt(p * (1 - p) / count)
    for name, (low, high) in {
        "brightness": (0.2, 1.8), "contrast": (0.2, 1.8), "saturation": (0.2, 1.8),
        "hue": (-0.2, 0.2),
    }.items():  # fmt: skip
        values = c[f"ColorJitter.{name}"]
        assert values.min() >= np.float32(low)
        assert values.max() <= np.float32(high)
        assert ks_distance(values[0], np.linspace(low, high, count)) < 2.23 * np.sqrt(2 / count)
    sigma = c["RandomGaussianBlur.sigma"]
    assert 0.1 <= sigma.min() < 0.11
    assert 1.99 < sigma.max() <= 2.0
    orders = np.stack([c[f"ColorJitter.order{k}"][0] for k in range(4)], -1) @ [64, 16, 4, 1]
    kinds, counts = np.unique(orders, return_counts=True)
    assert len(kinds) == 24
    assert ((counts - count / 24) ** 2 / (count / 24)).sum() < 60  # 23 degrees of freedom


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([CROP, Entry("RandomHorizontalFlp")], "did you mean 'RandomHorizontalFlip'"),
        ([CROP, Entry("ColorJitter", {"brighness": 1})], "did you mean 'brightness'"),
        ([CROP, Entry("RandomGrayscale", {"p": 1.5})], r"p = 1.5 must lie in \[0, 1\]"),
        ([CROP, Entry("RandomGrayscale", {"p": [0.1]})], "1 values but the group makes 2 views"),
        ([CROP, Entry("RandomGaussianBlur", {"kernel_size": [4, 4]})], "must be odd"),
        ([Entry("RandomResizedCrop", {"size": [0, 3]})], "must be 1 to 65,535 pixels"),
        ([Entry("CenterCrop", {"size": [32, 32], "resize": 16})], "smaller than size"),
        ([CROP, Entry("Normalize", {"std": [0, 1, 1]})], "must be above 0"),
        ([CROP, CROP], "stands later"),
        ([Entry("Normalize")], "stands first"),
        ([], "is empty"),
    ],
)
def test_mistakes_in_ops_are_named(entries, message):
    with pytest.raises(RecipeError, match=message):
        policy("global", entries, count=2, shared=False)
