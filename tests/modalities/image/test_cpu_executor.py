"""The cpu executor against the reference, op by op and recipe by recipe, on the same tables."""

import ctypes
import importlib.util
import itertools
import mmap
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sslpipe.device.buffers import Buffers
from sslpipe.errors import RecipeError
from sslpipe.modalities.image import executors
from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.modalities.image.draws import OPS, Policy, Step, draw, group_keys, policy
from sslpipe.modalities.image.executors import compiled, cpu, cpu_program, kornia
from sslpipe.modalities.image.maker import ImageMaker
from sslpipe.recipe import load_recipe
from sslpipe.recipe.names import Entry
from sslpipe.rng import Place

from ...conftest import ROOT

LEVEL = 1 / 255
CPU = torch.device("cpu")
CROP = ("RandomResizedCrop", {"size": [40, 56]})
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
NAMES = sorted(
    set(OPS) & {op.__name__ for op in (*cpu_program.CROPS, *cpu_program.FLIPS, *cpu_program.LINES)}
)
SETTINGS = {
    "Resize": {"size": [40, 56]},
    "CenterCrop": {"size": [40, 56], "resize": 64},
    "ColorJitter": JITTER,
    "MultiScaleCrop": {"size": [40, 56]},
    "RandomCrop": {"size": [40, 56], "padding": 9},
    "RandomGaussianBlur": {"kernel_size": [9, 5], "sigma": [0.05, 3.0]},
    "RandomResizedCrop": {"size": [40, 56]},
    "RandomSolarize": {"thresholds": [0.2, 0.9]},
}


def canvases(count=12, low=30, high=160, seed=0):
    """Half of them noise, half smooth with flat and grey parts."""
    rng = np.random.default_rng(seed)
    made = []
    for i, (h, w) in enumerate(rng.integers(low, high, (count, 2))):
        pixels = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        if i % 2:
            pixels = np.kron(pixels[: h // 8 + 1, : w // 8 + 1], np.ones((8, 8, 1), np.uint8))
            pixels[:9] = pixels[:9, :, :1]
            pixels = pixels[:h, :w]
        made.append(torch.from_numpy(np.ascontiguousarray(pixels)))
    return made


def build(listed, count=1, shared=False):
    entries = [Entry(name, settings) for name, settings in listed]
    return policy("global", entries, count=count, shared=shared)


def table_of(group, images, seed=5, uids=None):
    uids = np.arange(len(images), dtype=np.int64) + 7 if uids is None else uids
    keys = group_keys(group, seed=seed, epochs=np.zeros_like(uids), uids=uids)
    return draw(group, keys, np.array([image.shape[:2] for image in images], dtype=np.int64))


def both(group, images, table=None):
    table = table_of(group, images) if table is None else table
    assert not cpu.unsupported(group)
    made = cpu.execute(group, images, table, device=CPU)
    want = kornia.execute(group, images, table, device=CPU)
    assert made.shape == want.shape
    assert made.dtype == torch.float32
    return made, want


def difference(made, want):
    return float((made - want).abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_every_op_agrees_with_the_reference(name):
    listed = [(name, SETTINGS.get(name, {}))]
    if OPS[name] not in cpu_program.CROPS:
        listed = [CROP, (name, SETTINGS.get(name, {}))]
    group, images = build(listed, count=3), canvases()
    made, want = both(group, images)
    if name == "RandomSolarize":  # a jump where a pixel lies on the threshold to rounding
        jumps = (made - want).abs() > 0.001 * LEVEL
        assert jumps.float().mean() < 1e-4
        made = torch.where(jumps, want, made)
    assert difference(made, want) < 0.001 * LEVEL * (4.5 if name == "Normalize" else 1)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (33, 47), (96, 80), (1, 1), (1, 300)])
def test_resized_crop_up_and_down_with_and_without_antialias(size, resample, antialias):
    settings = {"size": list(size), "resample": resample, "antialias": antialias}
    made, want = both(build([("RandomResizedCrop", settings)], count=4), canvases())
    assert difference(made, want) < 0.002 * LEVEL


@pytest.mark.parametrize("antialias", [True, False])
def test_boxes_of_one_pixel_and_of_the_whole_canvas(antialias):
    settings = {"size": [24, 20], "resample": "bicubic", "antialias": antialias}
    group = build([("RandomResizedCrop", settings)])
    images = canvases(6, low=50)
    boxes = [(3, 4, 30, 1), (49, 0, 1, 50), (49, 49, 1, 1), (0, 0, 2, 2), (5, 6, 20, 24)]
    whole = (0, 0, images[5].shape[1], images[5].shape[0])
    made, want = both(group, images, np.array([[*boxes, whole]], dtype=np.float32))
    assert difference(made, want) < 0.001 * LEVEL


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (17, 3)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_small_boxes_at_any_place_whole_eights_or_not(size, resample):
    """Of 1 to 20 px a side, flipped or not, some in the last corner of their canvas."""
    crop = ("RandomResizedCrop", {"size": list(size), "resample": resample})
    group, images = build([crop, *flips(0.5)], count=8), canvases(40, 1, 30)
    table, rng = table_of(group, images), np.random.default_rng(3)
    room_B2 = np.array([image.shape[1::-1] for image in images])
    sides_VB2 = rng.integers(1, np.minimum(room_B2, 20) + 1, (8, 40, 2))
    corners_VB2 = rng.integers(0, room_B2 - sides_VB2 + 1)
    corners_VB2[:3] = (room_B2 - sides_VB2)[:3]
    table[..., :4] = np.concatenate([corners_VB2, sides_VB2], 2)
    assert difference(*both(group, images, table)) < 2e-6


def test_nothing_beyond_a_canvas_is_read():
    """It ends where a page does that may not be read: reading on would end the process."""
    page, images, held = mmap.PAGESIZE, [], []
    for height, width in ((1, 1), (1, 5), (3, 6), (40, 57), (90, 130)):
        size = 3 * height * width
        length = -(-size // page) * page
        memory = mmap.mmap(-1, length + page)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + length), page, 0) == 0
        bytes_ = np.frombuffer(memory, np.uint8, size, length - size)
        bytes_[:] = np.arange(size) % 251
        images.append(torch.from_numpy(bytes_.reshape(height, width, 3)))
        held.append(memory)
    group = build([CROP])
    boxes = [[(0, 0, image.shape[1], image.shape[0]) for image in images]]
    made, want = both(group, images, np.array(boxes, np.float32))
    assert difference(made, want) < 2e-6


def test_a_box_outside_the_canvas_is_refused():
    table = np.array([[[0, 0, 61, 20]]], dtype=np.float32)
    with pytest.raises(AssertionError, match="leaves the canvas"):
        cpu.execute(build([CROP]), [torch.zeros(60, 60, 3, dtype=torch.uint8)], table, device=CPU)


def test_random_crop_far_outside_is_zero():
    group = build([("RandomCrop", {"size": [16, 16], "padding": 30})], count=8)
    made, want = both(group, canvases(4, 5, 20))
    assert difference(made, want) < 1e-6
    assert torch.equal(made == 0, want == 0)


def test_all_24_orders_of_color_jitter():
    group, images = build([CROP, ("ColorJitter", JITTER)]), canvases(24)
    table = table_of(group, images)
    start = group.columns.index("ColorJitter.order0")
    table[0, :, start : start + 4] = list(itertools.permutations(range(4)))
    assert difference(*both(group, images, table)) < 0.001 * LEVEL


def test_hue_of_grey_black_and_primary_pixels():
    colours = list(itertools.product((0, 127, 128, 255), repeat=3))
    image = torch.tensor(colours, dtype=torch.uint8).reshape(8, 8, 3)
    group = build([("CenterCrop", {"size": [8, 8]}), ("ColorJitter", {"hue": 0.5})], count=20)
    assert difference(*both(group, [image])) < 0.001 * LEVEL


@pytest.mark.parametrize("kernel_size", [[23, 23], [3, 9], [1, 1]])
def test_taps_of_a_blur_are_cut_without_being_seen(kernel_size):
    blur = {"kernel_size": kernel_size, "sigma": [0.05, 8.0], "p": 1.0}
    group, images = build([CROP, ("RandomGaussianBlur", blur)]), canvases(24)
    table = table_of(group, images)
    table[0, :, -1] = np.linspace(0.05, 8, 24)
    assert difference(*both(group, images, table)) < 0.001 * LEVEL


def flips(p):
    return [("RandomHorizontalFlip", {"p": p}), ("RandomVerticalFlip", {"p": p})]


OTHERS = [
    ("ColorJitter", {**JITTER, "p": 0.8}),
    ("RandomGrayscale", {}),
    ("RandomGaussianBlur", {"kernel_size": [9, 9]}),
    ("RandomSolarize", {}),
    ("Normalize", {}),
]


@pytest.mark.parametrize("place", range(len(OTHERS) + 1))
def test_a_flip_may_stand_anywhere(place):
    listed = [CROP, *OTHERS[:place], *flips(0.5), *OTHERS[place:], *flips(0.5)]
    group = build(listed, count=2)
    codes = cpu_program.program(group)[:, 0].tolist()
    assert sorted(codes[:4]) == 2 * [cpu_program.UPSIDE_DOWN] + 2 * [cpu_program.MIRROR]
    assert codes[4] == cpu_program.CROP
    assert difference(*both(group, canvases())) < 0.001 * LEVEL * 4.5


@dataclass(frozen=True)
class Shade:
    """An op that the executor does not know."""

    columns = ("on",)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (path.stem, name)
        for path in sorted((ROOT / "pipelines").glob("image/*.yaml"))
        for name in load_recipe(path).views
    ],
)
def test_recipes_agree_with_the_reference(recipe, name):
    views = load_recipe(ROOT / "pipelines" / "image" / f"{recipe}.yaml").views[name]
    group = policy(name, views.ops, count=views.count, shared=views.draws == "shared")
    images = canvases(4, 50, 400)
    made, want = both(group, images)
    assert difference(made, want) < 0.001 * LEVEL * 4.5


CHAIN = [CROP, *flips(0.5), *OTHERS]


def test_threads_change_no_bit():
    group, images = build(CHAIN, count=3), canvases(67)
    table = table_of(group, images)
    alone = cpu.execute(group, images, table, device=CPU)
    for count in (1, 2, 5):
        with ThreadPoolExecutor(count) as threads:
            shared = cpu.execute(group, images, table, device=CPU, threads=threads)
        assert torch.equal(alone, shared)


def test_a_sample_alone_is_the_same_bit_for_bit():
    group, images = build(CHAIN, count=2), canvases(9)
    uids = np.arange(9, dtype=np.int64)
    together = cpu.execute(group, images, table_of(group, images, uids=uids), device=CPU)
    for b in (0, 4, 8):
        table = table_of(group, images[b : b + 1], uids=uids[b : b + 1])
        alone = cpu.execute(group, images[b : b + 1], table, device=CPU)
        assert torch.equal(alone[:, 0], together[:, b])


class Poisoned(Buffers):
    """Memory in which something stands already."""

    def empty(self, shape, dtype):
        memory = super().empty(shape, dtype)
        memory.fill(np.nan)
        return memory


def test_every_pixel_is_written():
    group, images = build(CHAIN, count=2), canvases(9)
    table = table_of(group, images)
    made = cpu.execute(group, images, table, device=CPU, buffers=Poisoned())
    assert torch.equal(made, cpu.execute(group, images, table, device=CPU))


def test_canvases_are_left_alone_and_need_not_be_contiguous():
    images = canvases()
    before = [image.clone() for image in images]
    group = build(CHAIN, count=2)
    table = table_of(group, images)
    made = cpu.execute(group, images, table, device=CPU)
    strided = [image.repeat(1, 2, 1)[:, : image.shape[1]] for image in images]
    assert not strided[0].is_contiguous()
    assert torch.equal(made, cpu.execute(group, strided, table, device=CPU))
    assert all(torch.equal(a, b) for a, b in zip(images, before, strict=True))


def test_an_empty_batch_makes_an_empty_group():
    group = build(CHAIN, count=2)
    empty = np.zeros((2, 0, len(group.columns)), np.float32)
    assert cpu.execute(group, [], empty, device=CPU).shape == (2, 0, 3, 40, 56)


def test_an_error_in_a_thread_is_raised():
    group = build([CROP])
    table = np.array([[[0, 0, 61, 20]]], dtype=np.float32)
    image = torch.zeros(60, 60, 3, dtype=torch.uint8)
    with ThreadPoolExecutor(2) as threads, pytest.raises(AssertionError, match="leaves"):
        cpu.execute(group, [image], table, device=CPU, threads=threads)


def test_choice_of_the_executor(monkeypatch):
    group = build(CHAIN)
    assert executors.choose("kornia", group, CPU) is kornia.execute
    if importlib.util.find_spec("triton"):
        assert executors.fastest(group, torch.device("cuda")) == "triton"
    assert executors.choose("auto", group, CPU).func is cpu.execute
    foreign = Policy("global", 1, False, (*group.steps, Step(Shade(), "s", 0, "s")), group.columns)
    assert cpu.unsupported(foreign) == ["Shade"]
    assert executors.choose("auto", foreign, CPU) is kornia.execute
    assert executors.fastest(foreign, torch.device("cuda")) == "kornia"
    with pytest.raises(RecipeError, match="does not know Shade"):
        executors.choose("cpu", foreign, CPU)
    with pytest.raises(RecipeError, match="needs a CUDA device, this is cpu"):
        executors.choose("triton", group, CPU)
    assert executors.choose("compiled", group, CPU).args == (compiled.prepare,)
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    assert executors.choose("auto", group, CPU) is kornia.execute
    with pytest.raises(RecipeError, match=r'numba is missing; pip install "sslpipe\[cpu\]"'):
        executors.choose("cpu", group, CPU)


def test_views_come_from_the_executor_of_the_recipe():
    recipe = load_recipe(ROOT / "pipelines" / "image" / "demo.yaml")
    images = canvases(4)
    made = {}
    decider = ImageDecider(recipe.views, {}, {}, seed=1)
    uids = np.arange(4, dtype=np.int64)
    sides = np.array([image.shape[:2] for image in images], dtype=np.int64)
    place = Place(0, uids, len(uids))
    tables = decider.decide(epochs=uids * 0, uids=uids, place=place, extents=sides)
    for name in ("kornia", "cpu"):
        maker = ImageMaker(decider, device=CPU, executor=name)
        made[name] = maker.make(images, tables, {}).views["global"]
    assert 0 < difference(made["cpu"], made["kornia"]) < 0.02 * LEVEL


def test_every_op_has_a_case_in_the_compiled_loops():
    """One without would be left out in silence."""
    group = build([CROP, *OTHERS, *flips(1.0)])
    assert set(cpu_program.program(group)[:, 0]) == set(range(8))
    known = {type(step.op) for step in group.steps[1:]}
    assert known == {*cpu_program.FLIPS, *cpu_program.LINES}


@pytest.mark.parametrize(
    ("canvas", "box"),
    [
        (torch.zeros(60, 60, 3), (0, 0, 20, 20)),
        (torch.zeros(60, 60, 4, dtype=torch.uint8), (0, 0, 20, 20)),
        (torch.zeros(60, 60, 3, dtype=torch.uint8), (0, 0, 0, 20)),
        (torch.zeros(60, 60, 3, dtype=torch.uint8), (-1, 0, 20, 20)),
        (torch.zeros(60, 60, 3, dtype=torch.uint8), (0, np.nan, 20, 20)),
    ],
)
def test_what_would_read_beyond_a_canvas_is_refused(canvas, box):
    with pytest.raises(AssertionError):
        cpu.execute(build([CROP]), [canvas], np.array([[box]], np.float32), device=CPU)


SCRIPT = """
import sys
import numpy as np, torch
from sslpipe.modalities.image.draws import draw, group_keys, policy
from sslpipe.modalities.image.executors import cpu
from sslpipe.recipe.names import Entry
ops = [Entry("RandomResizedCrop", {"size": [16, 16]}), Entry("ColorJitter", {"hue": 0.2})]
group = policy("global", ops, count=1, shared=False)
zero = np.zeros(1, np.int64)
table = draw(group, group_keys(group, seed=0, epochs=zero, uids=zero), np.array([[30, 40]]))
image = torch.arange(3600).remainder(251).to(torch.uint8).reshape(30, 40, 3)
views = cpu.execute(group, [image], table.astype(np.float32), device=torch.device("cpu"))
print(views.double().sum().item(), *{"numba", "kornia"} & set(sys.modules))
"""


def test_a_new_process_loads_what_another_compiled_and_neither_numba_nor_kornia():
    cpu.load()  # compiled by now, and kept
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    total, *imported = done.stdout.split()
    assert 0 < float(total) < 768
    assert not imported
