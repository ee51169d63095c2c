"""The compiled executor against the Kornia executor, on the CPU; what needs a GPU is marked."""

import itertools

import numpy as np
import pytest
import torch

from sslpipe.device import arena
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.modalities.image.executors import compiled, kornia, planar, planar_crop, run_prepared
from sslpipe.recipe.names import Entry

from ...waiting import forbidden_to_wait

LEVEL = 1 / 255
CPU = torch.device("cpu")
BOX = ("RandomCrop", {"size": [40, 48]})  # moves levels, computes nothing
FLIP = ("RandomHorizontalFlip", {})
JITTER = ("ColorJitter", {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2})
MILD = (
    "ColorJitter",
    {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8},
)
GREY = ("RandomGrayscale", {"p": 0.2})


def resized(side, **settings):
    return ("RandomResizedCrop", {"size": [side, side], **settings})


def blurred(size, p):
    return ("RandomGaussianBlur", {"kernel_size": [size, size], "p": p})


CHAINS = {
    "simclr": (2, [resized(56), FLIP, JITTER, GREY, blurred(23, 0.5), ("Normalize", {})]),
    "dino global": (
        2,
        [
            resized(56, scale=[0.4, 1.0], resample="bicubic"),
            *(FLIP, MILD, GREY, blurred(23, [1.0, 0.1])),
            ("RandomSolarize", {"p": [0.0, 0.2], "thresholds": [0.4321, 0.4321]}),
            ("Normalize", {}),
        ],
    ),
    "dino local": (
        6,
        [
            resized(24, scale=[0.05, 0.4], resample="bicubic"),
            *(FLIP, MILD, GREY, blurred(9, 0.5), ("Normalize", {})),
        ],
    ),
    "mae": (1, [resized(32, scale=[0.2, 1.0], resample="bicubic"), FLIP, ("Normalize", {})]),
    "rotation": (4, [("RandomCrop", {"size": [64, 64], "padding": 8}), FLIP, ("Normalize", {})]),
    "late flip": (2, [resized(40), MILD, blurred(5, 0.5), FLIP, ("RandomVerticalFlip", {})]),
    "evaluation": (1, [("CenterCrop", {"size": [32, 32], "resize": 40}), ("Normalize", {})]),
}


def photos(count=5, seed=0):
    """Canvases of noise, each of its own size: the hardest picture for a resampler."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(50, 120, (count, 2))
    return [torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def decided(ops, images, *, count=1, uids=None):
    """The policy of some ops and its table for some images."""
    group = policy("global", [Entry(*op) for op in ops], count=count, shared=False)
    uids = np.arange(len(images), dtype=np.int64) + 7 if uids is None else uids
    keys = group_keys(group, seed=5, epochs=np.zeros_like(uids), uids=uids)
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    return group, draw(group, keys, sizes)


def both(ops, images, *, count=1, edit=None, **settings):
    """Views of the two executors from one table."""
    group, table = decided(ops, images, count=count)
    if edit:
        edit(group, table)
    views = run_prepared(compiled.prepare, group, images, table, device=CPU, **settings)
    return views, kornia.execute(group, images, table, device=CPU)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [16, 40, 160])
@pytest.mark.parametrize("antialias", [True, False])
def test_resized_crop(resample, side, antialias):
    op = resized(side, resample=resample, antialias=antialias)
    views, want = both([op, FLIP], photos(), count=3)
    assert views.dtype == torch.float32
    assert views.shape == want.shape
    assert (views - want).abs().max() < 0.01 * LEVEL


def test_taps_cover_the_largest_box_and_spare_ones_change_nothing():
    images = photos()
    group, table = decided([resized(16, resample="bicubic")], images, count=3)
    scale = max(table[..., 2:].max() / 16, 1)
    taps = planar_crop.tap_count(group, table)
    assert 4 * scale <= taps < 1.25 * (4 * scale + 1)
    inputs = arena.upload(images, table, device=CPU).tensors
    few, many = (planar.chain(group, n, torch.float32)(*inputs) for n in (taps, taps + 9))
    assert torch.equal(few, many)  # or a sample would depend on the largest box of its batch


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_two_passes_are_the_direct_sum(resample, monkeypatch):
    ops = [resized(24, resample=resample), FLIP, ("RandomVerticalFlip", {})]
    monkeypatch.setattr(planar_crop, "DIRECT", 0)
    twice, want = both(ops, photos(), count=2)
    assert (twice - want).abs().max() < 0.01 * LEVEL
    monkeypatch.setattr(planar_crop, "DIRECT", 99)
    at_once, _ = both(ops, photos(), count=2)
    assert torch.equal(at_once, twice)


def test_random_crop_moves_levels_exactly_and_pads_with_zeros():
    ops = [("RandomCrop", {"size": [90, 70], "padding": 12}), FLIP, ("RandomVerticalFlip", {})]
    views, want = both(ops, photos(), count=4)
    assert torch.equal(views, want)


def test_all_24_orders_of_color_jitter():
    orders = list(itertools.permutations(range(4)))

    def set_orders(group, table):
        start = group.columns.index("ColorJitter.order0")
        table[0, :, start : start + 4] = orders

    views, want = both([BOX, JITTER], photos(24), edit=set_orders)
    assert (views - want).abs().max() < 1e-3 * LEVEL


@pytest.mark.parametrize(
    "settings",
    [{"brightness": 0.4}, {"contrast": 0.4}, {"saturation": 0.4}, {"hue": 0.5}, {"p": 0.0}],
)
def test_a_factor_alone(settings):
    views, want = both([BOX, ("ColorJitter", settings)], photos(8))
    assert (views - want).abs().max() < 1e-3 * LEVEL


@pytest.mark.parametrize(
    "op",
    [
        ("RandomGrayscale", {"p": 0.5}),
        blurred(23, 0.5),
        ("RandomGaussianBlur", {"kernel_size": [3, 9], "sigma": [0.5, 3.0]}),
        ("RandomSolarize", {"p": 0.5}),
        ("Normalize", {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}),
    ],
)
def test_the_other_ops(op):
    views, want = both([BOX, op], photos(8))
    assert (views - want).abs().max() < 1e-3 * LEVEL / 0.2


def test_rows_whose_gate_is_off_keep_their_bits():
    images = photos(12)
    plain, _ = both([BOX], images)
    for op in (JITTER, GREY, blurred(9, 0.5), ("RandomSolarize", {})):
        gated = (op[0], {**op[1], "p": 0.5})
        group, table = decided([BOX, gated], images)
        on = table[0, :, group.columns.index(f"{op[0]}.on")] > 0
        assert 0 < on.sum() < len(images)
        views = run_prepared(compiled.prepare, group, images, table, device=CPU)
        same = (views[0] == plain[0]).flatten(1).all(1).numpy()
        assert (same == ~on).all()


@pytest.mark.parametrize("name", CHAINS)
def test_chains_equal_kornia(name):
    count, ops = CHAINS[name]
    views, want = both(ops, photos(), count=count)
    assert (views - want).abs().max() < 0.01 * LEVEL


@pytest.mark.parametrize("name", CHAINS)
def test_bfloat16_is_the_float32_view_rounded_once(name):
    count, ops = CHAINS[name]
    group, table = decided(ops, photos(), count=count)
    whole, half = (
        run_prepared(compiled.prepare, group, photos(), table, device=CPU, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, whole.bfloat16())


@pytest.mark.parametrize("name", ["simclr", "dino local", "rotation"])
def test_a_sample_does_not_depend_on_its_batch(name):
    count, ops = CHAINS[name]
    images, uids = photos(6), np.arange(6, dtype=np.int64) + 7
    group, table = decided(ops, images, count=count)
    views = run_prepared(compiled.prepare, group, images, table, device=CPU)
    shuffle = np.random.default_rng(1).permutation(6)
    again, permuted = decided(ops, [images[i] for i in shuffle], count=count, uids=uids[shuffle])
    moved = run_prepared(
        compiled.prepare, again, [images[i] for i in shuffle], permuted, device=CPU
    )
    assert torch.equal(moved, views[:, shuffle])
    for b in range(6):
        one, row = decided(ops, images[b : b + 1], count=count, uids=uids[b : b + 1])
        alone = run_prepared(compiled.prepare, one, images[b : b + 1], row, device=CPU)
        assert torch.equal(alone[:, 0], views[:, b])


def test_the_arena_holds_every_canvas_and_the_table():
    images = photos()
    _, table = decided([resized(32), FLIP], images, count=3)
    packed = arena.upload(images, table, device=CPU)
    assert torch.equal(packed.table_RP.view(*table.shape), torch.from_numpy(table))
    assert packed.pixels_N.numel() == arena.rung(sum(image.numel() for image in images))
    for row, image in enumerate(images * 3):
        start = int(packed.offsets_R[row])
        assert torch.equal(packed.pixels_N[start : start + image.numel()], image.flatten())
        assert tuple(packed.sides_R2[row]) == image.shape[:2]
    storages = {tensor.untyped_storage().data_ptr() for tensor in packed.tensors}
    assert len(storages) == 1
    assert all(t.data_ptr() % 16 == packed.pixels_N.data_ptr() % 16 for t in packed.tensors)


def test_rungs_are_few_and_close():
    rungs = [arena.rung(n) for n in range(1, 1000)]
    assert all(n <= r <= 1.25 * n for n, r in enumerate(rungs, start=1))
    assert len(set(rungs)) <= 4 * 10


@pytest.mark.parametrize("name", CHAINS)
def test_no_device_value_is_read_by_the_host(name):
    """On meta, as on CUDA, an .item(), a branch or a boolean index would need the value."""
    count, ops = CHAINS[name]
    group, table = decided(ops, photos(), count=count)
    views = run_prepared(compiled.prepare, group, photos(), table, device=torch.device("meta"))
    assert views.shape == (count, 5, 3, *group.crop.size)


def test_what_it_supports():
    for count, ops in CHAINS.values():
        assert not compiled.unsupported(decided(ops, photos(), count=count)[0])
    erasing = ("RandomErasing", {})
    assert compiled.unsupported(decided([resized(8), erasing, GREY], photos())[0]) == [erasing[0]]


def test_an_op_without_a_planar_form_is_not_supported(monkeypatch):
    group, _ = decided([resized(8), GREY], photos())
    monkeypatch.setattr(planar, "APPLY", {})
    assert compiled.unsupported(group) == ["RandomGrayscale"]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.slow
@needs_cuda
@pytest.mark.parametrize("name", CHAINS)
def test_cuda_equals_the_cpu(name):
    count, ops = CHAINS[name]
    group, table = decided(ops, photos(), count=count)
    views = run_prepared(compiled.prepare, group, photos(), table, device=CUDA)
    want = run_prepared(compiled.prepare, group, photos(), table, device=CPU)
    assert (views.cpu() - want).abs().max() < 0.05 * LEVEL


@pytest.mark.gpu
@needs_cuda
def test_the_table_arrives_on_cuda_bit_for_bit():
    _, table = decided(CHAINS["simclr"][1], photos(), count=2)
    packed = arena.upload(photos(), table, device=CUDA)
    assert torch.equal(packed.table_RP.cpu().view(*table.shape), torch.from_numpy(table))


@pytest.mark.gpu
@pytest.mark.slow
@needs_cuda
def test_a_second_batch_on_cuda_does_not_synchronise():
    count, ops = CHAINS["simclr"]
    group, table = decided(ops, photos(), count=count)
    run_prepared(compiled.prepare, group, photos(), table, device=CUDA)
    with forbidden_to_wait():
        run_prepared(compiled.prepare, group, photos(), table, device=CUDA)


@pytest.mark.gpu
@pytest.mark.slow
@needs_cuda
def test_a_captured_cuda_graph_replays_the_same_bits():
    count, ops = CHAINS["simclr"]
    group, table = decided(ops, photos(), count=count)
    make = compiled.prepare(group, photos(), table, device=CUDA)
    want = make().clone()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        views = make()
    views.zero_()
    captured.replay()
    assert torch.equal(views, want)
