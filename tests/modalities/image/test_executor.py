"""The reference executor against torchvision, op by op, with the same parameters."""

import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF

from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.modalities.image.executors import kornia
from sslpipe.recipe.names import Entry

LEVEL = 1 / 255
CPU = torch.device("cpu")
CROP = ("CenterCrop", {"size": [48, 40]})


def canvases(count=6, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(60, 120, (count, 2))
    return [torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def run(ops, images, *, count=1, seed=5, edit=None):
    """(views, table, policy) of a policy on images."""
    entries = [Entry(name, settings) for name, settings in ops]
    group = policy("global", entries, count=count, shared=False)
    uids = np.arange(len(images), dtype=np.int64) + 7
    keys = group_keys(group, seed=seed, epochs=np.zeros_like(uids), uids=uids)
    sizes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    table = draw(group, keys, sizes)
    if edit:
        edit(table, group)
    return kornia.execute(group, images, table, device=CPU), table, group


def column(table, group, name):
    return table[..., group.columns.index(name)]


def cropped(images, size=(48, 40)):
    return run([("CenterCrop", {"size": list(size)})], images)[0][0]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (96, 80)])
def test_resized_crop_is_torchvisions_antialiased_resized_crop(resample, size):
    images = canvases()
    ops = [("RandomResizedCrop", {"size": list(size), "resample": resample})]
    views, table, _ = run(ops, images, count=3)
    mode = {"bilinear": TF.InterpolationMode.BILINEAR, "bicubic": TF.InterpolationMode.BICUBIC}
    for v, b in itertools.product(range(3), range(len(images))):
        x, y, w, h = (int(side) for side in table[v, b])
        image = images[b].permute(2, 0, 1).float() / 255
        want = TF.resized_crop(
            image, y, x, h, w, list(size), interpolation=mode[resample], antialias=True
        )
        assert (views[v, b] - want.clamp(0, 1)).abs().max() < 0.01 * LEVEL


def test_flips_move_pixels_exactly():
    images = canvases()
    plain = cropped(images)
    for op, axis in (("RandomHorizontalFlip", -1), ("RandomVerticalFlip", -2)):
        views, table, group = run([CROP, (op, {"p": 0.5})], images)
        on = column(table, group, f"{op}.on")[0]
        assert 0 < on.sum() < len(images)
        for b, flipped in enumerate(on):
            want = plain[b].flip(axis) if flipped else plain[b]
            assert torch.equal(views[0, b], want)


def test_all_24_orders_of_color_jitter_equal_torchvision():
    images = canvases(24)
    orders = list(itertools.permutations(range(4)))

    def set_orders(table, group):
        start = group.columns.index("ColorJitter.order0")
        table[0, :, start : start + 4] = orders

    jitter = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
    views, table, group = run([CROP, ("ColorJitter", jitter)], images, edit=set_orders)
    steps = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]
    names = ["brightness", "contrast", "saturation", "hue"]
    plain = cropped(images)
    for b, order in enumerate(orders):
        want = plain[b]
        for factor in order:
            amount = column(table, group, f"ColorJitter.{names[factor]}")[0, b]
            want = steps[factor](want, float(amount))
        assert (views[0, b] - want).abs().max() < 0.05 * LEVEL


def test_rows_whose_gate_is_off_are_untouched():
    images = canvases(12)
    plain = cropped(images)
    for op, settings in (
        ("ColorJitter", {"brightness": 0.8, "hue": 0.2, "p": 0.5}),
        ("RandomGrayscale", {"p": 0.5}),
        ("RandomGaussianBlur", {"kernel_size": [9, 9], "p": 0.5}),
        ("RandomSolarize", {"p": 0.5}),
    ):
        views, table, group = run([CROP, (op, settings)], images)
        on = column(table, group, f"{op}.on")[0] > 0
        assert 0 < on.sum() < len(images)
        same = (views[0] == plain).flatten(1).all(1).numpy()
        assert (same == ~on).all()


def test_grayscale_blur_solarize_and_normalize_equal_torchvision():
    images = canvases()
    plain = cropped(images)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    grey = run([CROP, ("RandomGrayscale", {"p": 1.0})], images)[0][0]
    assert (grey - TF.rgb_to_grayscale(plain, 3)).abs().max() < 0.1 * LEVEL
    normal = run([CROP, ("Normalize", {"mean": mean, "std": std})], images)[0][0]
    assert torch.allclose(normal, TF.normalize(plain, mean, std), atol=1e-5)
    solarized = run([CROP, ("RandomSolarize", {"p": 1.0})], images)[0][0]
    assert torch.equal(solarized, TF.solarize(plain, 0.5))
    blur = [CROP, ("RandomGaussianBlur", {"kernel_size": [23, 23], "p": 1.0})]
    views, table, group = run(blur, images)
    for b, sigma in enumerate(column(table, group, "RandomGaussianBlur.sigma")[0]):
        want = TF.gaussian_blur(plain[b], [23, 23], [float(sigma)] * 2)
        assert (views[0, b] - want).abs().max() < 0.01 * LEVEL


def test_resize_is_torchvision_s_antialiased_resize():
    images = canvases()
    views = run([("Resize", {"size": [48, 40]})], images)[0][0]
    for view, image in zip(views, images, strict=True):
        want = TF.resize(image.permute(2, 0, 1).float() / 255, [48, 40], antialias=True)
        assert (view - want).abs().max() < 0.01 * LEVEL


def test_tones_equal_torchvision():
    images, crop = canvases(), ("RandomCrop", {"size": [48, 40]})  # whole levels: not resized
    plain = run([crop], images)[0][0]
    levels = (plain * 255).round().to(torch.uint8)
    for name, adjust, source, tolerance in (
        ("RandomInvert", TF.invert, plain, 0.001),
        ("RandomAutoContrast", TF.autocontrast, plain, 0.1),  # Kornia adds 1e-6 to the range
        ("RandomEqualize", TF.equalize, levels, 0.001),
    ):
        views = run([crop, (name, {"p": 1.0})], images)[0][0]
        want = adjust(source)
        want = want.float() / 255 if want.dtype == torch.uint8 else want
        assert (views - want).abs().max() < tolerance * LEVEL, name
    posterized, table, group = run([crop, ("RandomPosterize", {"bits": [1, 8], "p": 1.0})], images)
    sharpened, factors, tones = run(
        [crop, ("RandomSharpness", {"sharpness": [0.0, 3.0], "p": 1.0})], images
    )
    for b in range(len(images)):
        bits = int(column(table, group, "RandomPosterize.bits")[0, b])
        assert (posterized[0, b] - TF.posterize(levels[b], bits) / 255).abs().max() < 0.001 * LEVEL
        factor = float(column(factors, tones, "RandomSharpness.sharpness")[0, b])
        want = TF.adjust_sharpness(plain[b], factor)
        assert (sharpened[0, b] - want).abs().max() < 0.01 * LEVEL


def test_rotations_turn_counter_clockwise_like_torchvision():
    images = canvases(12)
    crop = ("CenterCrop", {"size": [41, 41]})
    plain = cropped(images, (41, 41))
    turned, table, group = run([crop, ("RandomRotation90", {"times": [-3, 3]})], images)
    turns = column(table, group, "RandomRotation90.turns")[0]
    assert len(set(turns)) > 4
    for b, k in enumerate(turns):
        assert torch.equal(turned[0, b], torch.rot90(plain[b], int(k), (-2, -1)))
    for resample in ("bilinear", "nearest"):
        rotation = ("RandomRotation", {"degrees": 60, "p": 1.0, "resample": resample})
        views, table, group = run([crop, rotation], images)
        y, x = torch.meshgrid(torch.arange(41) - 20, torch.arange(41) - 20, indexing="ij")
        inside = (x**2 + y**2) < 18**2  # beyond, torchvision blends in the fill
        for b, degrees in enumerate(column(table, group, "RandomRotation.degrees")[0]):
            mode = TF.InterpolationMode(resample)
            want = TF.rotate(plain[b], float(degrees), mode)
            off = (views[0, b] - want).abs().amax(0)[inside]
            # a nearest neighbour may tip over on a tie
            assert (off < 0.1 * LEVEL).float().mean() > (0.99 if resample == "nearest" else 0.9999)


def test_erasing_is_torchvision_s_erase():
    images = canvases(16)
    plain = cropped(images)
    views, table, group = run([CROP, ("RandomErasing", {"value": 0.25})], images)
    on = column(table, group, "RandomErasing.on")[0]
    assert 0 < on.sum() < len(images)
    for b in range(len(images)):
        x, y, w, h = (int(column(table, group, f"RandomErasing.{c}")[0, b]) for c in "xywh")
        want = TF.erase(plain[b], y, x, h, w, torch.tensor(0.25)) if on[b] else plain[b]
        assert torch.equal(views[0, b], want)


def test_erasing_nothing_where_no_box_was_found():
    def no_box(table, group):
        start = group.columns.index("RandomErasing.x")
        table[..., start : start + 4] = 0

    images = canvases()
    erasing = [CROP, ("RandomErasing", {"p": 1.0})]
    assert torch.equal(run(erasing, images, edit=no_box)[0][0], cropped(images))


def test_an_op_of_one_s_own_brings_its_own_pixels(write_module):
    text = """
from dataclasses import dataclass
import numpy as np, torch

@dataclass(frozen=True, kw_only=True)
class Darken:
    by: float = 0.5
    p: float = 0.5
    columns = ("on",)

    def draw(self, source):
        return source.gates(source.uniforms(1)[..., 0], self.p)[..., None]

    def apply(self, images, rows):
        return images * torch.from_numpy(1 - self.by * rows[:, :1, None, None])
"""
    write_module("mine", text)
    images = canvases()
    views, table, group = run([CROP, ("mine:Darken", {"by": 0.25})], images)
    on = torch.from_numpy(column(table, group, "mine:Darken.on")[0])
    assert torch.equal(views[0], cropped(images) * (1 - 0.25 * on)[:, None, None, None])
    assert group.steps[1].reference_only


def test_random_crop_pads_with_zeros_like_torchvision():
    images = [image[:32, :32] for image in canvases(8)]
    views, table, _ = run([("RandomCrop", {"size": [32, 32], "padding": 4})], images)
    for b, (x, y, _w, _h) in enumerate(table[0].astype(int)):
        padded = TF.pad(images[b].permute(2, 0, 1).float() / 255, [4])
        assert torch.equal(views[0, b], padded[:, y + 4 : y + 36, x + 4 : x + 36])
    assert {tuple(row) for row in table[0, :, :2]} != {(0.0, 0.0)}


def test_center_crop_is_torchvisions_resize_and_center_crop():
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
    view = run([("CenterCrop", {"size": [224, 224], "resize": 256})], [image])[0][0, 0]
    resized = TF.resize(
        image.permute(2, 0, 1).float() / 255, [256], TF.InterpolationMode.BICUBIC, antialias=True
    )
    want = TF.center_crop(resized, [224, 224]).clamp(0, 1)
    inner = slice(3, -3)  # at the border torchvision's filter sees pixels beyond the crop
    assert (view - want)[:, inner, inner].abs().max() < 0.01 * LEVEL


def test_the_callers_random_state_is_left_alone():
    state = torch.get_rng_state()
    before = np.random.get_state()[1].copy()
    ops = [CROP, ("ColorJitter", {"hue": 0.1}), ("RandomGaussianBlur", {"kernel_size": [3, 3]})]
    run(ops, canvases())
    assert torch.equal(state, torch.get_rng_state())
    assert (before == np.random.get_state()[1]).all()
