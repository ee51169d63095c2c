"""Every op in the table, and foreign ones: keyed by the sample alone, off means untouched."""

import inspect
import itertools
import threading

import kornia.augmentation as K
import numpy as np
import pytest
import torch

from sslpipe.device.keyed_random import KeyedRandom
from sslpipe.errors import RecipeError
from sslpipe.modalities.image import ops
from sslpipe.modalities.image.draws import OPS, Crop, draw, group_keys, policy
from sslpipe.modalities.image.executors import kornia
from sslpipe.modalities.image.ops.foreign import foreign_names
from sslpipe.recipe.names import Entry

CPU = torch.device("cpu")
SETTINGS = {  # of ops that do nothing, or too little to be seen, by default
    "CenterCrop": {"size": [24, 24]},
    "MultiScaleCrop": {"size": [24, 24]},
    "RandomCrop": {"size": [24, 24], "padding": 2},
    "RandomResizedCrop": {"size": [24, 24]},
    "Resize": {"size": [24, 24]},
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "RandomGaussianBlur": {"kernel_size": [5, 5], "sigma": [0.5, 2.0]},
    "RandomRotation": {"degrees": 40},
    "RandomPosterize": {"bits": [1, 3]},
}
FOREIGN = {
    "RandomAffine": {"degrees": 30, "translate": [0.2, 0.2], "p": 0.5},
    "RandomGaussianNoise": {"std": 0.2, "p": 0.5},
    "RandomChannelShuffle": {"p": 0.5},
    "RandomPerspective": {"p": 0.5},
    "RandomPlasmaShadow": {"p": 0.5},
}
ALL = [(name, SETTINGS.get(name, {})) for name in OPS] + list(FOREIGN.items())
CROPS = [name for name, kind in OPS.items() if kind in Crop.__args__]
GATED = [name for name, _ in ALL if name not in (*CROPS, "Normalize")]


def group_of(name, settings, *, before=(), after=(), count=2):
    first = () if name in CROPS else (Entry("RandomResizedCrop", {"size": [24, 24]}),)
    entries = [*first, *before, Entry(name, settings, "r.yaml:9"), *after]
    return policy("global", entries, count=count, shared=False)


def images_of(uids):
    """A picture of its own for each uid."""
    rngs = [np.random.default_rng(int(uid)) for uid in uids]
    sizes = [rng.integers(30, 60, 2) for rng in rngs]
    small = [rng.integers(0, 256, (6, 6, 3)) for rng in rngs]
    return [
        torch.from_numpy(np.resize(s.repeat(9, 0).repeat(9, 1), (h, w, 3)).astype(np.uint8))
        for s, (h, w) in zip(small, sizes, strict=True)
    ]


def made(group, uids, *, seed=5):
    """(views, table) of the samples called `uids`."""
    uids = np.asarray(uids, dtype=np.int64)
    images = images_of(uids)
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    table = draw(group, group_keys(group, seed=seed, epochs=np.zeros_like(uids), uids=uids), sizes)
    return kornia.execute(group, images, table, device=CPU), table


@pytest.mark.parametrize(("name", "settings"), ALL, ids=[name for name, _ in ALL])
def test_views_depend_on_their_sample_alone(name, settings):
    state, uids = torch.get_rng_state(), np.arange(100, 112)
    group = group_of(name, settings)
    views, table = made(group, uids)
    order = np.random.default_rng(0).permutation(len(uids))
    for chosen in (order, np.array([7]), np.arange(3, 8)):  # permuted, alone, another batch size
        again, rows = made(group, uids[chosen])
        assert (rows == table[:, chosen]).all()
        # kernels of another batch size may add up in another order: equal but for rounding
        assert (again - views[:, chosen]).abs().max() < 1e-5
    assert torch.equal(made(group, uids)[0], views)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("name", "settings"), ALL, ids=[name for name, _ in ALL])
def test_an_op_that_is_inserted_changes_no_draw_of_it(name, settings):
    uids = np.arange(40)
    plain = group_of(name, settings)
    _, table = made(plain, uids)
    off = [Entry("RandomVerticalFlip", {"p": 0.0}), Entry("RandomBrightness", {"p": 0.0})]
    before = () if name in CROPS or name == "RandomVerticalFlip" else off
    more = group_of(name, settings, before=before, after=() if before else off[1:])
    views, rows = made(more, uids)
    for column, values in zip(plain.columns, np.moveaxis(table, -1, 0), strict=True):
        assert (rows[..., more.columns.index(column)] == values).all(), column
    assert torch.equal(views, made(plain, uids)[0])


@pytest.mark.parametrize(("name", "settings"), ALL, ids=[name for name, _ in ALL])
def test_the_reference_reads_nothing_back_from_the_device(name, settings):
    """The meta device has no values: an `item()`, `tolist()` or `bool()` of its tensors fails."""
    uids = np.arange(12)
    group = group_of(name, settings)
    table = made(group, uids)[1]
    views = kornia.execute(group, images_of(uids), table, device=torch.device("meta"))
    assert views.shape == (2, 12, 3, 24, 24)


@pytest.mark.parametrize("name", GATED)
def test_p_is_the_rate_and_nothing_else_changes(name):
    settings = {**SETTINGS, **FOREIGN}.get(name, {})
    uids = np.arange(12)
    crop, _ = made(policy("global", [Entry("RandomResizedCrop", {"size": [24, 24]})],
                          count=2, shared=False), uids)  # fmt: skip
    views, table = made(group_of(name, {**settings, "p": 0.0}), uids)
    assert torch.equal(views, crop)
    views, half = made(group_of(name, {**settings, "p": 0.5}), uids)
    on = half[..., 4] > 0
    assert 0 < on.sum() < on.size
    untouched = (views == crop).flatten(2).all(-1).numpy()
    assert untouched[~on].all()
    assert untouched[on].mean() < 0.5  # a turn by 0 leaves a view alone too
    always = made(group_of(name, {**settings, "p": [0.0, 1.0]}), uids)[1]
    assert (always[..., 4] == [[0.0], [1.0]]).all()
    for other in (half, always):
        assert (other[..., 5:] == table[..., 5:]).all()


def test_only_kornia_s_own_classes_and_the_newer_ops_say_reference_only():
    group = group_of("RandomAffine", {"degrees": 3}, before=[Entry("RandomGrayscale")])
    assert [step.reference_only for step in group.steps] == [False, False, True]
    assert group.summary == (
        "2 x 24 x 24: RandomResizedCrop, RandomGrayscale, RandomAffine (kornia executor only)"
    )


@pytest.mark.parametrize(
    ("name", "setting", "columns"),
    [
        ("RandomResizedCrop", {"size": [24, 24], "scale": [[0.5, 1.0], [0.05, 0.2]]}, ("w", "h")),
        ("ColorJitter", {"brightness": [[0.9, 1.0], [1.5, 1.6]]}, ("brightness",)),
        ("ColorJitter", {"hue": [[0.0, 0.0], [0.3, 0.4]]}, ("hue",)),
        ("RandomGaussianBlur", {"kernel_size": [3, 3], "sigma": [[0.1, 0.2], [1, 2]]}, ("sigma",)),
        ("RandomSolarize", {"thresholds": [[0.1, 0.2], [0.5, 0.6]]}, ("threshold",)),
        ("RandomErasing", {"scale": [[0.02, 0.05], [0.3, 0.33]]}, ("w", "h")),
        ("RandomRotation", {"degrees": [[-5, 0], [10, 20]]}, ("degrees",)),
        ("RandomRotation90", {"times": [[0, 0], [1, 3]]}, ("turns",)),
        ("RandomPosterize", {"bits": [[1, 2], [7, 8]]}, ("bits",)),
        ("RandomSharpness", {"sharpness": [[0, 0.1], [2, 3]]}, ("sharpness",)),
    ],
)
def test_a_range_may_be_a_list_with_one_entry_per_view(name, setting, columns):
    """Each view has its own range, and draws as it would if that range held for all."""
    uids = np.arange(50)
    (key,) = [k for k, v in setting.items() if isinstance(v[0], list)]
    both = group_of(name, setting)
    _, table = made(both, uids)
    for view in range(2):
        one = group_of(name, {**setting, key: setting[key][view]})
        assert (made(one, uids)[1][view] == table[view]).all()
    drawn = [table[..., both.columns.index(f"{name}.{column}")] for column in columns]
    area = np.prod(drawn, axis=0)
    assert np.median(area[0]) != np.median(area[1])
    with pytest.raises(RecipeError, match=f"{key} has 2 values but the group makes 3 views"):
        group_of(name, setting, count=3)


def test_jitter_s_order_is_the_sample_s_the_epoch_s_or_fixed():
    def orders(order, epochs, seed=0):
        group = group_of("ColorJitter", {"hue": 0.1, "order": order})
        uids = np.arange(len(epochs))
        keys = group_keys(group, seed=seed, epochs=np.asarray(epochs), uids=uids)
        table = draw(group, keys, np.full((len(uids), 2), 40))
        start = group.columns.index("ColorJitter.order0")
        return table[..., start : start + 4], np.delete(table, np.s_[start : start + 4], -1)

    epochs = np.arange(200) // 2  # two samples of each epoch
    common, rest = orders("batch", epochs)
    single, same = orders("per_sample", epochs)
    assert (rest == same).all()
    assert (common[:, 0::2] == common[:, 1::2]).all()
    assert 0.8 < (single[:, 0::2] != single[:, 1::2]).any(-1).mean() < 1
    assert len(np.unique(common.reshape(-1, 4), axis=0)) == 24
    assert (common[0] != common[1]).any(-1).mean() > 0.8  # views have orders of their own
    assert (orders([2, 0, 3, 1], epochs)[0] == [2, 0, 3, 1]).all()


def test_quarter_turns_and_bits_are_equally_likely():
    uids = np.arange(4000)
    for name, settings, kinds in (
        ("RandomRotation90", {}, range(4)),
        ("RandomRotation90", {"times": [-1, 1]}, (-1, 0, 1)),
        ("RandomPosterize", {"bits": [4, 8]}, range(4, 9)),
    ):
        group = group_of(name, settings)
        keys = group_keys(group, seed=1, epochs=np.zeros_like(uids), uids=uids)
        drawn = draw(group, keys, np.full((len(uids), 2), 40))[..., -1]
        found, counts = np.unique(drawn, return_counts=True)
        want = drawn.size / len(kinds)
        assert list(found) == list(kinds)
        assert (abs(counts - want) < 5 * np.sqrt(want)).all()


def test_every_other_class_of_kornia_can_be_named_or_is_refused_with_the_reason():
    names = set(foreign_names())
    assert {"RandomAffine", "RandomPerspective", "RandomElasticTransform", "RandomClahe"} <= names
    for name in ("RandomMixUpV2", "RandomCutMixV2", "RandomMosaic", "PatchMix"):
        with pytest.raises(RecipeError, match=f"r.yaml:9: {name} cannot be an op: it mixes"):
            group_of(name, {})
    with pytest.raises(RecipeError, match="downloads a diffusion model"):
        group_of("RandomDissolving", {})
    plain = [
        name
        for name in names
        if all(
            p.default is not p.empty
            for p in inspect.signature(getattr(K, name)).parameters.values()
        )
        and name not in OPS
    ]
    assert len(plain) > 20
    for name in plain:  # all that need no settings; each is tried on a view when it is built
        group_of(name, {})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("RandomAffin", {}, "unknown op 'RandomAffin'; did you mean 'RandomAffine'"),
        ("RandomAffine", {"degres": 3}, "has no setting 'degres'; did you mean 'degrees'"),
        ("RandomAffine", {"degrees": 3, "same_on_batch": True}, "no setting 'same_on_batch'"),
        ("RandomAffine", {}, "r.yaml:9: RandomAffine: .*'degrees'.*correct the settings"),
        ("RandomAffine", {"degrees": [1, 2, 3]}, "r.yaml:9: RandomAffine: degrees should be"),
        ("RandomAffine", {"degrees": 3, "p": 1.5}, r"p = 1.5 must lie in \[0, 1\]"),
        ("RandomAffine", {"degrees": 3, "p": "x"}, "RandomAffine.p = 'x'"),
        ("RandomAffine", {"degrees": 3, "p": [0.1]}, "p has 1 values but the group makes 2 views"),
        ("LongestMaxSize", {"max_size": 12}, "it changes 24 x 24 px to"),
        ("RandomGaussianBlur", {"kernel_size": [49, 49]}, "too large to reflect"),
        ("RandomGaussianBlur", {"kernel_size": [3, 3], "sigma": [2, 1]}, r"sigma = \[2.0, 1.0\]"),
        ("RandomSolarize", {"thresholds": [0.5, 1.5]}, r"within \[0, 1\]"),
        ("RandomErasing", {"value": 2}, "value = 2.0 must lie in"),
        ("RandomErasing", {"scale": [0.5, 0.1]}, "scale = .* must be .from, to. within"),
        ("RandomErasing", {"ratio": [0, 1]}, "ratio = .* must be .from, to. within"),
        ("RandomRotation", {"degrees": -3}, "degrees = .* must be .from, to. within"),
        ("RandomRotation", {}, "needs the setting 'degrees'"),
        ("RandomRotation90", {"times": [0, 9]}, "times = .* must be .from, to. within"),
        ("RandomPosterize", {"bits": 9}, "bits = .* must be .from, to. within"),
        ("RandomSharpness", {"sharpness": -1}, "sharpness = .* must be .from, to. within"),
        ("ColorJitter", {"order": [0, 1, 2, 2]}, "must hold 0, 1, 2 and 3 once each"),
        ("ColorJitter", {"order": "batc"}, "ColorJitter.order = 'batc'"),
        ("ColorJitter", {"hue": 0.7}, r"hue = \[-0.7, 0.7\] .* within \[-0.5, 0.5\]"),
        ("RandomCrop", {"size": [8, 8], "padding": -1}, "padding = -1 must be 0 to 65,535 pixels"),
        ("collections:Counter", {}, r"is no op: it needs columns, draw\(source\) and apply"),
    ],
)
def test_mistakes_are_named(name, settings, message):
    with pytest.raises(RecipeError, match=message):
        group_of(name, settings)


def test_odd_quarter_turns_want_square_views():
    crop = Entry("Resize", {"size": [24, 32]})
    half = Entry("RandomRotation90", {"times": [2, 2]})
    assert policy("g", [crop, half], count=1, shared=False).crop.size == (24, 32)
    with pytest.raises(RecipeError, match="views of 24 x 32 px change shape"):
        policy("g", [crop, Entry("RandomRotation90")], count=1, shared=False)


def test_what_is_random_in_the_fence_is_keyed_in_its_thread_alone():
    seen, inside, drawn = [], threading.Event(), threading.Event()

    def trainer():
        assert inside.wait(10)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            seen.append(torch.rand(4))
        drawn.set()

    thread = threading.Thread(target=trainer)
    thread.start()
    with KeyedRandom(11):
        first = [torch.rand(3), torch.randn(2), torch.randperm(9), torch.empty(3).uniform_(2, 3)]
        inside.set()
        assert drawn.wait(10)
        later = torch.randint(0, 9, (5,))
    thread.join()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert torch.equal(seen[0], torch.rand(4))
    torch.rand(7)  # the caller goes on drawing; nothing changes
    with KeyedRandom(11):
        again = [torch.rand(3), torch.randn(2), torch.randperm(9), torch.empty(3).uniform_(2, 3)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert torch.equal(later, torch.randint(0, 9, (5,)))
    generator = torch.Generator().manual_seed(11)
    assert torch.equal(first[0], torch.rand(3, generator=generator))
    with KeyedRandom(1), pytest.raises(ValueError, match="takes no generator"):
        torch.native_dropout(torch.ones(3), 0.5, True)


def ends(low, high):
    """The ranges at the edge of what a setting may be, and one within."""
    return [(low, low), (low, high), (high, high), (low + (high - low) / 3, low + (high - low) / 2)]


CORNERS = [  # an op of ours at the edge of its settings, and Kornia's from the same
    *((ops.RandomResizedCrop(size=(1, 300), scale=scale, ratio=ratio),
       lambda op: K.RandomResizedCrop(op.size, scale=op.scale, ratio=op.ratio))
      for scale, ratio in itertools.product(ends(0, 1), ends(0.01, 100))),
    *((ops.RandomErasing(scale=scale, ratio=ratio, value=1.0),
       lambda op: K.RandomErasing(op.scale, op.ratio, op.value))
      for scale, ratio in itertools.product(ends(0, 1), ends(0.01, 100))),
    *((ops.RandomGaussianBlur(kernel_size=(1, 301), sigma=sigma),
       lambda op: K.RandomGaussianBlur(op.kernel_size, op.sigma)) for sigma in ends(0.01, 1e6)),
    *((ops.RandomSolarize(thresholds=pair),
       lambda op: K.RandomSolarize(op.thresholds, (0.0, 0.0))) for pair in ends(0, 1)),
    *((ops.RandomRotation(degrees=pair),
       lambda op: K.RandomRotation(op.bounds, resample=op.resample)) for pair in ends(-360, 360)),
    *((ops.RandomRotation90(times=pair), lambda op: K.RandomRotation90(op.times))
      for pair in ((-3, -3), (-3, 3), (3, 3))),
    *((ops.RandomPosterize(bits=pair), lambda op: K.RandomPosterize(tuple(map(float, op.bounds))))
      for pair in ((0, 0), (0, 8), (8, 8))),
    *((ops.RandomSharpness(sharpness=pair), lambda op: K.RandomSharpness(op.bounds))
      for pair in ends(0, 1e6)),
    *((ops.ColorJitter(brightness=pair, contrast=pair, saturation=pair),
       lambda op: K.ColorJitter(op.brightness, op.contrast, op.saturation))
      for pair in ends(0, 1e6)),
    *((ops.ColorJitter(hue=pair), lambda op: K.ColorJitter(hue=op.hue))
      for pair in ends(-0.5, 0.5)),
    (ops.RandomCrop(size=(1, 9), padding=500), lambda op: K.RandomCrop(op.size, op.padding)),
    (ops.CenterCrop(size=(1, 9)), lambda op: K.CenterCrop(op.size)),
    (ops.Resize(size=(1, 9)), lambda op: K.Resize(op.size, antialias=op.antialias)),
]  # fmt: skip


def test_kornia_takes_every_setting_that_ours_take():
    """They check their own settings, so that a pipeline need not import Kornia to be built."""
    for op, kornia_s in CORNERS:
        assert isinstance(kornia_s(op), K.AugmentationBase2D)
